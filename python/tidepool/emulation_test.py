"""Run by ctest with TIDEPOOL_LIBRARY set."""

import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tidepool.emulation import Device, TidepoolError  # noqa: E402


class EmulationTest(unittest.TestCase):
    def test_steps_take_their_time_and_never_less(self):
        with Device("emulated:v100") as gpu:
            begin = time.monotonic()
            for _ in range(50):
                gpu.step(microseconds=2000)
                gpu.keep_queued(2)
            gpu.synchronize()
            self.assertGreaterEqual(time.monotonic() - begin, 0.0999)
            self.assertAlmostEqual(gpu.report().compute_busy_seconds, 0.1, places=6)

    def test_a_slow_loader_is_charged_as_waiting_for_data(self):
        def slow():
            for item in range(5):
                time.sleep(0.02)
                yield item

        with Device("emulated:v100") as gpu:
            seen = []
            for item in gpu.data(slow()):
                gpu.copy_to_device(1000)
                gpu.step(microseconds=1000)
                gpu.keep_queued(0)
                seen.append(item)
            report = gpu.report()
        self.assertEqual(seen, [0, 1, 2, 3, 4])
        self.assertGreater(report.data_wait_seconds, 0.07)  # four waits after the first step
        self.assertLess(report.utilisation, 0.1)

    def test_networks_of_the_profile_have_names(self):
        with Device("emulated:v100") as gpu:
            gpu.wait(gpu.step("resnet18", batch=8))
            gpu.wait(gpu.step("resnet18", batch=8, phase="forward"))
            self.assertEqual(gpu.report().estimated_operations, 2)
            with self.assertRaisesRegex(TidepoolError, "resnet1800"):
                gpu.step("resnet1800", batch=8)
            with self.assertRaisesRegex(ValueError, "phase 'both'"):
                gpu.step("resnet18", phase="both")

    def test_errors_say_what_is_wrong(self):
        with self.assertRaisesRegex(TidepoolError, "INVALID_ARGUMENT.*host") as raised:
            Device("host")
        self.assertEqual(raised.exception.code, 3)
        gpu = Device("emulated:v100")
        with self.assertRaises(ValueError):
            gpu.step()
        gpu.close()
        gpu.close()
        with self.assertRaisesRegex(ValueError, "closed"):
            gpu.step(microseconds=1)


if __name__ == "__main__":
    unittest.main()
