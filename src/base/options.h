// One table of options makes the configuration file's keys, the environment variables, the flags, the help text, the shell
// completion and the documentation.
//
// Order of precedence: default < file < environment < flag. Unknown keys of a file are errors; all faults are reported at once.
// A component fills a table with pointers to the fields of its Options struct:
//
//   OptionTable table;
//   table.Add({.key = "serve.grpc_port", .flag = "grpc-port", .help = "Port of the gRPC API"}, &options.grpc_port);
//
// gives the TOML key `grpc_port` in `[serve]`, the variable TIDEPOOL_SERVE_GRPC_PORT and the flag --grpc-port.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool {

struct OptionInfo {
  std::string key;        // "section.name", lower case with underscores
  std::string flag;       // without dashes; empty: the last part of the key with '-' for '_'
  std::string help;       // one line, with the unit
  std::string metavar;    // "N", "PATH", "SIZE"; empty: from the type
  bool advanced = false;  // shown by --help-all only
};

// Tags a field as a byte size ("512MiB") instead of a plain number.
struct BytesField {
  int64_t* value;
};

class OptionTable {
 public:
  enum class Source : uint8_t { kDefault, kFile, kEnvironment, kFlag };
  struct Entry {
    OptionInfo info;
    std::string type;           // "string", "int", "float", "bool", "size", "duration", "list"
    std::string default_value;  // as text
    Source source = Source::kDefault;
    std::string origin;                           // "cluster.toml:12", "TIDEPOOL_SERVE_GRPC_PORT", "--grpc-port"
    std::function<Status(std::string_view)> set;  // leaves the field alone on error; takes whatever `get` gives
    std::function<std::string()> get;
  };

  void Add(OptionInfo info, std::string* field);
  void Add(OptionInfo info, bool* field);
  void Add(OptionInfo info, int* field);
  void Add(OptionInfo info, int64_t* field);
  void Add(OptionInfo info, uint64_t* field);
  void Add(OptionInfo info, double* field);
  void Add(OptionInfo info, absl::Duration* field);
  void Add(OptionInfo info, BytesField field);
  void Add(OptionInfo info, std::vector<std::string>* field);
  // Any other type: `parse` reports what is allowed.
  void AddCustom(OptionInfo info, std::string type, std::function<Status(std::string_view)> set,
                 std::function<std::string()> get);

  // Reads TOML. One error reports every fault with its line, also keys that are neither in this table nor in `also_known`
  // (keys of other tables that share the file).
  Status LoadFile(const std::string& path, const std::set<std::string>& also_known = {});
  // Reads the variables TIDEPOOL_<KEY WITH UNDERSCORES> of every key, or of those of one section.
  Status LoadEnvironment(std::string_view section = {});
  // Sets one value by its key or its flag, unless a source of higher precedence has set it already (the value is checked all the
  // same). INVALID_ARGUMENT names the option, the value seen and what is allowed; the field then keeps its value.
  Status Set(std::string_view key, std::string_view value, Source source, std::string origin);

  // Shows the options of a section in --help-all only.
  void MarkAdvanced(std::string_view section);

  const std::vector<Entry>& entries() const { return entries_; }
  const Entry* FindFlag(std::string_view flag) const;
  const Entry* FindKey(std::string_view key) const;
  // What `tidepool config print` shows: TOML with a comment per line saying where the value came from.
  std::string PrintToml() const;
  std::string PrintJson() const;

 private:
  void Append(OptionInfo info, std::string type, std::function<Status(std::string_view)> set, std::function<std::string()> get);
  std::vector<Entry> entries_;
};

std::string_view Name(OptionTable::Source source);
// "serve.grpc_port" -> "TIDEPOOL_SERVE_GRPC_PORT".
std::string EnvironmentName(std::string_view key);

}  // namespace tidepool
