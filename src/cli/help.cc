#include "cli/help.h"

#include <algorithm>

#include "base/text.h"
#include "cli/command_line.h"

namespace tidepool::cli {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kMaxLeft = 30;

// Two columns; a left part that is too long gets its own line, the right one is wrapped.
class Columns {
 public:
  void Add(std::string left, std::string right) { rows_.emplace_back(std::move(left), std::move(right)); }

  std::string Text() const {
    size_t column = 0;
    for (const auto& [left, right] : rows_) column = std::max(column, left.size() <= kMaxLeft ? left.size() : 0);
    column += 4;
    std::string text;
    for (const auto& [left, right] : rows_) {
      std::string line = "  " + left;
      if (line.size() + 2 > column) {
        text += line + "\n";
        line.clear();
      }
      line.resize(column, ' ');
      bool first = true;
      for (const std::string& word : SplitText(right, ' ')) {
        if (!first && line.size() + 1 + word.size() > kWidth) {
          text += line + "\n";
          line.assign(column, ' ');
          first = true;
        }
        if (!first) line += ' ';
        line += word;
        first = false;
      }
      text += std::string(line.substr(0, line.find_last_not_of(' ') + 1)) + "\n";
    }
    return text;
  }

  bool empty() const { return rows_.empty(); }

 private:
  std::vector<std::pair<std::string, std::string>> rows_;
};

std::string FlagText(const OptionTable::Entry& entry) {
  if (entry.type != "bool") return fmt::format("--{} {}", entry.info.flag, entry.info.metavar);
  // A switch that is on by default is shown by the form that changes it.
  return entry.default_value == "true" ? fmt::format("--no-{}", entry.info.flag) : fmt::format("--{}", entry.info.flag);
}

std::string HelpText(const OptionTable::Entry& entry, bool all) {
  std::string text = entry.info.help;
  if (entry.type == "bool") {
    if (entry.default_value == "true") text += " (on unless this is given)";
  } else if (!entry.default_value.empty()) {
    text += fmt::format(" [{}]", entry.default_value);
  }
  if (all) text += fmt::format(" ({}, {})", entry.info.key, EnvironmentName(entry.info.key));
  return text;
}

std::string GlobalFlagsHelp() {
  Columns columns;
  for (const GlobalFlag& flag : GlobalFlags()) {
    columns.Add(fmt::format("{}--{}{}{}", flag.short_name.empty() ? "" : fmt::format("-{}, ", flag.short_name), flag.name,
                            flag.metavar.empty() ? "" : " ", flag.metavar),
                flag.help);
  }
  OptionTable logging;
  RegisterAll(nullptr, &logging);
  for (const OptionTable::Entry& entry : logging.entries()) columns.Add(FlagText(entry), HelpText(entry, false));
  return columns.Text();
}

bool IsLogging(const OptionTable::Entry& entry) { return entry.info.key.starts_with("log."); }

}  // namespace

std::string PositionalUsage(const Positional& positional) {
  std::string text = positional.name;
  if (positional.max != 1) text += "...";
  return positional.min == 0 ? "[" + text + "]" : text;
}

std::string RootHelp(const VerbList& verbs, bool all) {
  std::string text =
      "Tidepool serves deep-learning models and trains in the memory that serving leaves over.\n\n"
      "Usage: tidepool VERB [ARGUMENTS] [FLAGS]\n\nVerbs:\n";
  Columns columns;
  for (const auto& verb : verbs) columns.Add(verb->path(), verb->summary());
  text += columns.Text();
  if (all) {
    text += "\nFlags of every verb:\n" + GlobalFlagsHelp();
    text += "\nExit codes: 0 done, 1 the work failed, 2 what was asked for is wrong, 130 interrupted.\n";
  } else {
    text += "\n'tidepool VERB --help' explains a verb; 'tidepool --help-all' lists the flags that every verb takes.\n";
  }
  return text;
}

std::string GroupHelp(const VerbList& verbs, const std::string& group) {
  std::string text = fmt::format("Usage: tidepool {} VERB [ARGUMENTS] [FLAGS]\n\nVerbs:\n", group);
  Columns columns;
  for (const auto& verb : verbs) {
    if (verb->path().starts_with(group + " ")) columns.Add(verb->path(), verb->summary());
  }
  return text + columns.Text();
}

std::string VerbHelp(Verb* verb, const OptionTable& table, bool all) {
  const std::vector<Positional> positionals = verb->positionals();
  std::string usage = fmt::format("Usage: tidepool {}", verb->path());
  for (const Positional& positional : positionals) usage += " " + PositionalUsage(positional);
  std::string text = fmt::format("{}\n\n{} [FLAGS]\n", verb->summary(), usage);

  Columns arguments, options;
  for (const Positional& positional : positionals) arguments.Add(positional.name, positional.help);
  if (!arguments.empty()) text += "\nArguments:\n" + arguments.Text();
  size_t hidden = 0;
  for (const OptionTable::Entry& entry : table.entries()) {
    if (IsLogging(entry)) continue;
    if (entry.info.advanced && !all) {
      ++hidden;
      continue;
    }
    options.Add(FlagText(entry), HelpText(entry, all && verb->reads_config()));
  }
  if (!options.empty()) text += "\nFlags:\n" + options.Text();
  if (all) text += "\nFlags of every verb:\n" + GlobalFlagsHelp();
  if (!verb->details().empty()) text += "\n" + std::string(TrimText(verb->details())) + "\n";
  if (!all) {
    text += fmt::format("\n'--help-all' shows {}the flags of every verb{}.\n",
                        hidden > 0 ? fmt::format("{} more flags and ", hidden) : "",
                        verb->reads_config() ? ", configuration keys and variables" : "");
  }
  return text;
}

}  // namespace tidepool::cli
