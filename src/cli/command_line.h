// From the words of a command line to a verb that runs: flags, configuration file, environment, help, errors, exit codes.
#pragma once

#include <string>
#include <vector>

#include "base/options.h"
#include "base/status.h"
#include "cli/verb.h"

namespace tidepool::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// A flag that every verb takes and that is no option of a component.
struct GlobalFlag {
  std::string short_name;  // "o", or empty
  std::string name;
  std::string metavar;  // empty: takes no value
  std::string help;
};
const std::vector<GlobalFlag>& GlobalFlags();

// Runs what `arguments` (without the program's name) ask for and returns the process's exit code: 0 done, 1 the work failed,
// 2 what the user gave is wrong (every INVALID_ARGUMENT), 130 interrupted (CANCELLED after a signal).
// Data goes to stdout; errors go to stderr, as text or, with -o json, as {"error":{"code","message","exit_code"}}.
int RunCommandLine(const std::vector<std::string>& arguments, const VerbList& verbs);

// The options of one verb as its help, its completion and the configuration show them: those of logging, then its own.
void RegisterAll(Verb* verb, OptionTable* table);

// The keys that a configuration file may hold: those of every verb that reads one.
std::set<std::string> ConfigurationKeys(const VerbList& verbs);

}  // namespace tidepool::cli
