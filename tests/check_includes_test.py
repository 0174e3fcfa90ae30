#!/usr/bin/env python3
"""The include check finds what it is there for: runs it over small made-up trees."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECK = pathlib.Path(__file__).resolve().parent / "check_includes.py"
TABLE = """# x
## Folders
| folder | what | may include |
|---|---|---|
| `base` | b | nothing |
| `mid` | m | `base` |
| `engine` | e | `base` |
| `top` | t | everything above except `mid`, `proto` |
## Next
"""


class CheckIncludes(unittest.TestCase):
    def run_on(self, files, table=TABLE):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "docs").mkdir()
            (root / "docs" / "architecture.md").write_text(table)
            for name in ("base", "mid", "engine", "top"):
                (root / "src" / name).mkdir(parents=True)
            for name, text in files.items():
                (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "src" / name).write_text(text)
            done = subprocess.run([sys.executable, CHECK, root], capture_output=True, text=True)
            return done.returncode, done.stderr

    def test_accepts_what_the_table_allows(self):
        code, text = self.run_on({
            "mid/a.cc": '#include "mid/a.h"\n#include <vector>\n#include "base/b.h"\n',
            "top/a.cc": '#include "base/b.h"\n#include "engine/e.h"\n#include "proto/p.h"\n',
            "engine/a.cc": "#include <ATen/ATen.h>\n",
        })
        self.assertEqual((code, text), (0, ""))

    def test_refuses_an_edge_that_is_not_listed(self):
        code, text = self.run_on({"base/a.cc": 'int x;\n#include "mid/a.h"\n'})
        self.assertEqual(code, 1)
        self.assertIn('src/base/a.cc:2: src/base may not include "mid/a.h"', text)

    def test_refuses_an_excepted_folder_also_in_subfolders_and_tests(self):
        code, text = self.run_on({"top/deep/a_test.cc": '  #  include "mid/a.h"\n'})
        self.assertEqual(code, 1)
        self.assertIn('src/top may not include "mid/a.h"', text)

    def test_refuses_proto_where_it_is_not_listed(self):
        code, text = self.run_on({"mid/a.cc": '#include "proto/p.h"\n'})
        self.assertEqual(code, 1)

    def test_refuses_torch_outside_the_engine(self):
        code, text = self.run_on({"top/a.h": "#include <torch/torch.h>\n"})
        self.assertEqual(code, 1)
        self.assertIn("only src/engine may include torch", text)

    def test_refuses_a_folder_without_a_row_and_a_relative_path(self):
        code, text = self.run_on({"other/a.cc": "", "mid/b.cc": '#include "b.h"\n'})
        self.assertEqual(code, 1)
        self.assertIn("src/other: the folder has no row", text)
        self.assertIn('"b.h" is not relative to src/', text)

    def test_refuses_a_page_without_a_table(self):
        code, text = self.run_on({}, table="# nothing\n")
        self.assertEqual(code, 1)
        self.assertIn("there is no section", text)


if __name__ == "__main__":
    unittest.main()
