// What a verb of the command line is. A verb registers its options in an OptionTable; the one file that knows CLI11
// (command_line.cc) turns the tables into flags, help texts, completion and `config print`.
//
// Output: stdout is data (text, or JSON with `-o json`), stderr is talk. Exit codes: 0 done, 1 the work failed, 2 the command line or the
// configuration is wrong, 130 interrupted.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <absl/time/time.h>

#include "base/options.h"
#include "base/status.h"

namespace tidepool::cli {

enum class OutputFormat : uint8_t { kText, kJson };

// What the command line gives every verb.
struct VerbContext {
  OutputFormat output = OutputFormat::kText;
  bool color = false;     // a terminal, and NO_COLOR is not set
  bool progress = false;  // stderr is a terminal
  // Set by SIGINT and SIGTERM; long verbs watch it. Waits until it is set or the deadline passes; true if set.
  std::function<bool(absl::Time deadline)> wait_for_stop;
  std::function<bool()> stopped;
};

struct Positional {
  std::string name;  // "MODEL"
  std::string help;
  std::vector<std::string>* values = nullptr;
  int min = 0, max = 1;
};

class Verb {
 public:
  virtual ~Verb() = default;
  virtual std::string path() const = 0;     // "model create"
  virtual std::string summary() const = 0;  // one line
  virtual std::string details() const { return {}; }  // examples and notes below the options
  virtual void Register(OptionTable* table) { (void)table; }
  virtual std::vector<Positional> positionals() { return {}; }
  virtual bool reads_config() const { return false; }  // takes --config FILE and TIDEPOOL_ variables
  virtual Status Run(const VerbContext& context) = 0;
};

using VerbList = std::vector<std::unique_ptr<Verb>>;

// One function per file of verbs, each appending its own.
void AddModelVerbs(VerbList* verbs);      // model create|import|list|show|check
void AddNodeVerbs(VerbList* verbs);       // up, serve, status, ps, load, unload, infer
void AddTrainVerbs(VerbList* verbs);      // train
void AddBenchVerbs(VerbList* verbs);      // bench serve
void AddDemoVerbs(VerbList* verbs);       // demo
void AddToolVerbs(VerbList* verbs);       // doctor, config print, completion, version

}  // namespace tidepool::cli
