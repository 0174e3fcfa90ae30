#include "cli/command_line.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include <CLI/CLI.hpp>

#include "base/log.h"
#include "base/text.h"
#include "cli/help.h"
#include "cli/stop_signal.h"

namespace tidepool::cli {
namespace {

// What the words say before any table has been filled.
struct Words {
  Verb* verb = nullptr;
  std::string group;              // "model" of `tidepool model`: the words name verbs, but not one
  std::vector<std::string> rest;  // everything but the words of the verb
  bool help = false, help_all = false, version = false;
  std::optional<OutputFormat> output;
};

struct Parsed {
  std::string output = "text", config;
  bool help = false, help_all = false, no_color = false;
  std::vector<std::string> positionals;
  std::vector<std::pair<std::string, std::string>> flags;  // option key, value; in the table's order
};

bool TakesValue(const std::string& word) {
  for (const GlobalFlag& flag : GlobalFlags()) {
    if (!flag.metavar.empty() && (word == "--" + flag.name || word == "-" + flag.short_name)) return true;
  }
  return word == "--log-level" || word == "--log-format" || word == "--log-file";
}

OutputFormat OutputOf(const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "-ojson" || words[i] == "--output=json" || words[i] == "-o=json") return OutputFormat::kJson;
    if ((words[i] == "-o" || words[i] == "--output") && i + 1 < words.size() && words[i + 1] == "json")
      return OutputFormat::kJson;
  }
  return OutputFormat::kText;
}

// Finds the verb: the first one or two words that are neither flags nor values of global flags.
StatusOr<Words> FindVerb(const std::vector<std::string>& arguments, const VerbList& verbs) {
  Words words;
  std::vector<size_t> at;
  for (size_t i = 0; i < arguments.size() && at.size() < 2; ++i) {
    const std::string& word = arguments[i];
    if (word == "--") break;
    if (!word.starts_with('-') || word == "-") {
      // The second word must stand beside the first: flags of the verb come after its name.
      if (at.size() == 1 && at[0] + 1 != i) break;
      at.push_back(i);
    } else if (at.empty() && TakesValue(word)) {
      ++i;
    }
  }
  for (const std::string& word : arguments) {
    words.help |= word == "-h" || word == "--help";
    words.help_all |= word == "--help-all";
    words.version |= word == "--version";
  }
  if (at.empty()) return words;

  const std::string first = arguments[at[0]];
  const std::string both = at.size() == 2 ? first + " " + arguments[at[1]] : first;
  std::vector<std::string> paths;
  size_t used = 0;
  for (const auto& verb : verbs) {
    paths.push_back(verb->path());
    if (verb->path().starts_with(first + " ")) words.group = first;
    if (verb->path() == both && at.size() == 2) {
      words.verb = verb.get();
      used = 2;
    } else if (verb->path() == first && used < 1) {
      words.verb = verb.get();
      used = 1;
    }
  }
  if (words.verb == nullptr) {
    if (!words.group.empty() && at.size() == 1) return words;
    const std::string& wrong = words.group.empty() ? first : both;
    const std::string nearest = NearestName(wrong, paths);
    return InvalidArgument(
        "'{}' is no verb; {}", wrong,
        nearest.empty() ? std::string("'tidepool --help' lists them") : fmt::format("did you mean '{}'?", nearest));
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (std::find(at.begin(), at.begin() + static_cast<std::ptrdiff_t>(used), i) ==
        at.begin() + static_cast<std::ptrdiff_t>(used)) {
      words.rest.push_back(arguments[i]);
    }
  }
  return words;
}

Status UnknownFlag(const std::string& word, const OptionTable& table) {
  std::vector<std::string> known;
  for (const GlobalFlag& flag : GlobalFlags()) known.push_back("--" + flag.name);
  for (const OptionTable::Entry& entry : table.entries()) {
    known.push_back("--" + entry.info.flag);
    if (entry.type == "bool") known.push_back("--no-" + entry.info.flag);
  }
  const std::string name = word.substr(0, word.find('='));
  const std::string nearest = NearestName(name, known);
  return InvalidArgument(
      "{}: unknown flag{}", name,
      nearest.empty() ? std::string("; '--help-all' lists the flags of the verb") : fmt::format("; did you mean {}?", nearest));
}

// Hands the words to CLI11, with every value as text: the tables check them.
StatusOr<Parsed> ParseFlags(const std::vector<std::string>& words, const Verb& verb, const OptionTable& table) {
  Parsed parsed;
  const auto end_of_flags = std::find(words.begin(), words.end(), "--");
  std::vector<std::string> values(table.entries().size());
  std::vector<const CLI::Option*> options;
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  try {
    app.add_flag("-h,--help", parsed.help);
    app.add_flag("--help-all", parsed.help_all);
    app.add_flag("--no-color", parsed.no_color);
    app.add_option("-o,--output", parsed.output)->take_last();
    if (verb.reads_config()) app.add_option("--config", parsed.config)->take_last();
    for (size_t i = 0; i < values.size(); ++i) {
      const OptionTable::Entry& entry = table.entries()[i];
      const std::string flag = "--" + entry.info.flag;
      if (entry.type == "bool") {
        options.push_back(app.add_flag(fmt::format("{},!--no-{}", flag, entry.info.flag), values[i])->take_last());
      } else if (entry.type == "list") {
        options.push_back(app.add_option(flag, values[i])->multi_option_policy(CLI::MultiOptionPolicy::Join));
      } else {
        options.push_back(app.add_option(flag, values[i])->take_last());
      }
    }
    app.add_option("arguments", parsed.positionals)->expected(-1);
  } catch (const CLI::Error& error) {
    TIDEPOOL_CHECK(false, "the flags of '{}' do not fit together: {}", verb.path(), error.what());
  }
  try {
    // CLI11 takes its words last first.
    app.parse(std::vector<std::string>(std::make_reverse_iterator(end_of_flags), words.rend()));
  } catch (const CLI::ParseError& error) {
    return InvalidArgument("{}", error.what());
  }
  for (const std::string& word : app.remaining()) {
    if (word.starts_with('-') && word != "-") return UnknownFlag(word, table);
    parsed.positionals.push_back(word);
  }
  if (end_of_flags != words.end()) parsed.positionals.insert(parsed.positionals.end(), end_of_flags + 1, words.end());
  for (size_t i = 0; i < values.size(); ++i) {
    if (options[i]->count() == 0) continue;
    std::string value = values[i];
    if (table.entries()[i].type == "list") std::replace(value.begin(), value.end(), '\n', ',');
    parsed.flags.emplace_back(table.entries()[i].info.key, value);
  }
  return parsed;
}

// Gives each positional its minimum first, then as many more as it takes, from left to right.
Status PlacePositionals(const std::vector<std::string>& given, Verb* verb) {
  const std::vector<Positional> positionals = verb->positionals();
  size_t wanted = 0;
  for (const Positional& positional : positionals) {
    positional.values->clear();
    wanted += static_cast<size_t>(positional.min);
  }
  size_t next = 0;
  size_t spare = given.size() > wanted ? given.size() - wanted : 0;
  for (const Positional& positional : positionals) {
    const size_t least = static_cast<size_t>(positional.min);
    const size_t extra = positional.max < 0 ? spare : std::min(spare, static_cast<size_t>(positional.max) - least);
    spare -= extra;
    for (size_t i = 0; i < least + extra; ++i) {
      if (next == given.size()) {
        return InvalidArgument("'tidepool {}' needs {} ({})", verb->path(), positional.name, positional.help);
      }
      positional.values->push_back(given[next++]);
    }
  }
  if (next < given.size()) {
    return InvalidArgument("'tidepool {}' does not take the argument '{}'{}", verb->path(), given[next],
                           positionals.empty() ? "; it takes none" : "");
  }
  return {};
}

// A variable that looks like an option with a typing error is worth a warning; others may belong to somebody else.
void WarnOfVariables(const std::set<std::string>& keys) {
  std::vector<std::string> known;
  for (const std::string& key : keys) known.push_back(EnvironmentName(key));
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string name(text.substr(0, text.find('=')));
    if (!name.starts_with("TIDEPOOL_") || name == "TIDEPOOL_CONFIG" || std::find(known.begin(), known.end(), name) != known.end())
      continue;
    const std::string nearest = NearestName(name, known);
    if (!nearest.empty()) Log(LogLevel::kWarning, "variable is no option", {{"variable", name}, {"nearest", nearest}});
  }
}

LogOptions& TheLogOptions() {
  static LogOptions options;
  return options;
}

// default < file < environment < flag. All faults of all sources together.
Status LoadOptions(const Parsed& parsed, Verb* verb, const std::set<std::string>& known, OptionTable* table) {
  std::vector<std::string> faults;
  auto note = [&faults](const Status& status) {
    if (!status.ok()) faults.push_back(MessageOf(status));
  };
  if (verb->reads_config()) {
    std::vector<std::pair<std::string, std::string>> files;  // where its name came from, its name
    if (!parsed.config.empty()) files.emplace_back("--config", parsed.config);
    for (const Positional& positional : verb->positionals()) {
      for (const std::string& path : *positional.values) {
        if (positional.is_config) files.emplace_back(positional.name, path);
      }
    }
    if (const char* path = std::getenv("TIDEPOOL_CONFIG"); path != nullptr && files.empty())
      files.emplace_back("TIDEPOOL_CONFIG", path);
    for (const auto& [origin, path] : files) {
      const Status loaded = table->LoadFile(path, known);
      // Faults inside the file name it themselves.
      const bool inside = loaded.code() == StatusCode::kInvalidArgument;
      note(inside ? loaded : Annotate(loaded, origin));
    }
    WarnOfVariables(known);
  }
  // Logging obeys its variables under every verb, the other options only where a configuration is read.
  note(table->LoadEnvironment(verb->reads_config() ? "" : "log"));
  for (const auto& [key, value] : parsed.flags) {
    note(table->Set(key, value, OptionTable::Source::kFlag, "--" + table->FindKey(key)->info.flag));
  }
  if (faults.empty()) return {};
  return InvalidArgument("{}", JoinText(faults, "\n"));
}

int Fail(const Status& status, OutputFormat output, const std::string& verb, int exit_code) {
  if (output == OutputFormat::kJson) {
    fmt::print(stderr, "{{\"error\":{{\"code\":{},\"message\":{},\"exit_code\":{}}}}}\n", JsonQuoted(CodeName(status.code())),
               JsonQuoted(MessageOf(status)), exit_code);
    return exit_code;
  }
  const std::string name = verb.empty() ? "tidepool" : "tidepool " + verb;
  for (const std::string& line : SplitText(MessageOf(status), '\n')) fmt::print(stderr, "{}: {}\n", name, line);
  if (exit_code == kExitUsage) fmt::print(stderr, "'{} --help' shows what is allowed.\n", name);
  return exit_code;
}

int ExitCodeOf(const Status& status) {
  if (status.ok()) return kExitDone;
  if (status.code() == StatusCode::kInvalidArgument) return kExitUsage;
  if (status.code() == StatusCode::kCancelled && StopRequested()) return kExitInterrupted;
  return kExitFailed;
}

int RunVerb(const Words& words, const VerbList& verbs) {
  Verb* verb = words.verb;
  const OutputFormat asked = OutputOf(words.rest);
  const std::set<std::string> known = verb->reads_config() ? ConfigurationKeys(verbs) : std::set<std::string>();
  OptionTable table;
  RegisterAll(verb, &table);
  auto parsed = ParseFlags(words.rest, *verb, table);
  if (!parsed.ok()) return Fail(parsed.status(), asked, verb->path(), kExitUsage);
  if (parsed->help || parsed->help_all) {
    fmt::print("{}", VerbHelp(verb, table, parsed->help_all));
    return kExitDone;
  }
  if (parsed->output != "text" && parsed->output != "json") {
    return Fail(InvalidArgument("--output: '{}' is no output format; allowed: text, json", parsed->output), asked, verb->path(),
                kExitUsage);
  }
  Status ready = PlacePositionals(parsed->positionals, verb);
  if (ready.ok()) ready = LoadOptions(*parsed, verb, known, &table);
  if (ready.ok()) ready = InitLogging(TheLogOptions());
  if (!ready.ok()) return Fail(ready, asked, verb->path(), ExitCodeOf(ready));

  VerbContext context;
  context.output = parsed->output == "json" ? OutputFormat::kJson : OutputFormat::kText;
  const char* no_color = std::getenv("NO_COLOR");
  const bool plain = parsed->no_color || (no_color != nullptr && *no_color != '\0');
  context.color = !plain && ::isatty(STDOUT_FILENO) == 1;
  context.progress = !plain && ::isatty(STDERR_FILENO) == 1;
  context.options = &table;
  context.wait_for_stop = WaitForStop;
  context.stopped = StopRequested;
  const Status done = verb->Run(context);
  if (!done.ok()) return Fail(done, context.output, verb->path(), ExitCodeOf(done));
  if (std::fflush(stdout) != 0) return Fail(DataLoss("stdout could not be written"), context.output, verb->path(), kExitFailed);
  return kExitDone;
}

}  // namespace

const std::vector<GlobalFlag>& GlobalFlags() {
  static const std::vector<GlobalFlag> flags = {
      {"h", "help", "", "What the verb does and its flags"},
      {"", "help-all", "", "The same with advanced flags, configuration keys and variables"},
      {"o", "output", "text|json", "Form of the data on stdout and of errors on stderr [text]"},
      {"", "config", "FILE", "TOML configuration, for verbs that read one (also TIDEPOOL_CONFIG)"},
      {"", "no-color", "", "No colour and no progress lines (also NO_COLOR)"},
  };
  return flags;
}

void RegisterAll(Verb* verb, OptionTable* table) {
  LogOptions& log = TheLogOptions();
  log = {};
  table->AddCustom(
      {.key = "log.level",
       .flag = "log-level",
       .help = "Least important log line: debug, info, warning, error",
       .metavar = "LEVEL"},
      "choice",
      [&log](std::string_view text) -> Status {
        TIDEPOOL_ASSIGN_OR_RETURN(log.level, ParseLogLevel(text));
        return {};
      },
      [&log] { return std::string(Name(log.level)); });
  table->AddCustom(
      {.key = "log.format", .flag = "log-format", .help = "Form of log lines: text, json", .metavar = "FORMAT"}, "choice",
      [&log](std::string_view text) -> Status {
        TIDEPOOL_ASSIGN_OR_RETURN(log.format, ParseLogFormat(text));
        return {};
      },
      [&log] { return std::string(log.format == LogFormat::kJson ? "json" : "text"); });
  table->Add({.key = "log.file", .flag = "log-file", .help = "Log file; empty: stderr", .metavar = "FILE"}, &log.file);
  if (verb != nullptr) verb->Register(table);
}

std::set<std::string> ConfigurationKeys(const VerbList& verbs) {
  std::set<std::string> keys = {"log.level", "log.format", "log.file"};
  for (const auto& verb : verbs) {
    if (!verb->reads_config()) continue;
    OptionTable table;
    verb->Register(&table);
    for (const OptionTable::Entry& entry : table.entries()) keys.insert(entry.info.key);
  }
  return keys;
}

int RunCommandLine(const std::vector<std::string>& arguments, const VerbList& verbs) {
  auto words = FindVerb(arguments, verbs);
  if (!words.ok()) return Fail(words.status(), OutputOf(arguments), "", kExitUsage);
  if (words->verb != nullptr) return RunVerb(*words, verbs);
  if (words->version) return RunCommandLine({"version", OutputOf(arguments) == OutputFormat::kJson ? "-ojson" : "-otext"}, verbs);
  if (words->help || words->help_all) {
    fmt::print("{}", words->group.empty() ? RootHelp(verbs, words->help_all) : GroupHelp(verbs, words->group));
    return kExitDone;
  }
  for (const std::string& word : arguments) {
    if (word.starts_with('-') && !word.starts_with("-o") && !TakesValue(word.substr(0, word.find('=')))) {
      return Fail(UnknownFlag(word, OptionTable()), OutputOf(arguments), "", kExitUsage);
    }
  }
  fmt::print(stderr, "{}", words->group.empty() ? RootHelp(verbs, false) : GroupHelp(verbs, words->group));
  return kExitUsage;
}

}  // namespace tidepool::cli
