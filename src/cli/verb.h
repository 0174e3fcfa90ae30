// What a verb of the command line is. A verb registers its options in an OptionTable; the one file that knows CLI11
// (command_line.cc) turns the tables into flags, help texts, completion and `config print`.
//
// Output: stdout is data (text, or JSON with `-o json`), stderr is talk. Exit codes: 0 done, 1 the work failed, 2 the command
// line or the configuration is wrong (every INVALID_ARGUMENT), 130 interrupted (CANCELLED after a signal).
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/options.h"
#include "base/status.h"

namespace tidepool::cli {

enum class OutputFormat : uint8_t { kText, kJson };

// What the command line gives every verb.
struct VerbContext {
  OutputFormat output = OutputFormat::kText;
  bool color = false;                    // a terminal, and NO_COLOR is not set
  bool progress = false;                 // stderr is a terminal
  const OptionTable* options = nullptr;  // every option of the verb and where its value came from; valid during Run
  // Set by SIGINT and SIGTERM; long verbs watch it. Waits until it is set or the deadline passes; true if set.
  std::function<bool(absl::Time deadline)> wait_for_stop;
  std::function<bool()> stopped;
};

struct Positional {
  std::string name;  // "MODEL"
  std::string help;
  std::vector<std::string>* values = nullptr;
  int min = 0, max = 1;    // max -1: any number
  bool is_config = false;  // its value is read as --config is
};

class Verb {
 public:
  virtual ~Verb() = default;
  virtual std::string path() const = 0;               // "model create"
  virtual std::string summary() const = 0;            // one line
  virtual std::string details() const { return {}; }  // examples and notes below the options
  // `table` lives until Run has returned. May be called more than once, with other tables.
  virtual void Register(OptionTable* table) { (void)table; }
  virtual std::vector<Positional> positionals() { return {}; }
  virtual bool reads_config() const { return false; }  // takes --config FILE and TIDEPOOL_ variables
  virtual Status Run(const VerbContext& context) = 0;
};

using VerbList = std::vector<std::unique_ptr<Verb>>;

// Appends the verbs of every group, in the order of the help. `verbs` must outlive them.
void AddAllVerbs(VerbList* verbs);
// One function per file of verbs, each appending its own.
void AddModelVerbs(VerbList* verbs);           // model families|create|import|list|show|check
void AddProfileVerbs(VerbList* verbs);         // profile, profile list|show|check|diff|import|copy
void AddNodeVerbs(VerbList* verbs);            // up, serve, status, ps, load, unload, infer
void AddTrainVerbs(VerbList* verbs);           // train
void AddPlanVerbs(VerbList* verbs);            // plan, plan ops|predict|show|compare|verify
void AddExperimentVerbs(VerbList* verbs);      // experiment
void AddBenchVerbs(VerbList* verbs);           // bench serve
void AddDataVerbs(VerbList* verbs);            // data show|check|pack, bench loader
void AddEmulationBenchVerbs(VerbList* verbs);  // bench pacing|virtual-time
void AddStallVerbs(VerbList* verbs);           // stalls
void AddDemoVerbs(VerbList* verbs);            // demo
void AddToolVerbs(VerbList* verbs);  // doctor, collect-env, config print, completion, version; `verbs` must outlive them

}  // namespace tidepool::cli
