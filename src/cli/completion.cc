#include "cli/completion.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/text.h"
#include "cli/command_line.h"

namespace tidepool::cli {
namespace {

struct Flag {
  std::string name;  // with dashes
  std::string help;
  bool takes_value = false;
};

std::vector<Flag> FlagsOf(Verb* verb) {
  std::vector<Flag> flags;
  OptionTable table;
  RegisterAll(verb, &table);
  for (const OptionTable::Entry& entry : table.entries()) {
    const bool on = entry.type == "bool" && entry.default_value == "true";
    flags.push_back(
        {.name = (on ? "--no-" : "--") + entry.info.flag, .help = entry.info.help, .takes_value = entry.type != "bool"});
  }
  for (const GlobalFlag& flag : GlobalFlags()) {
    if (flag.name == "config" && !verb->reads_config()) continue;
    flags.push_back({.name = "--" + flag.name, .help = flag.help, .takes_value = !flag.metavar.empty()});
  }
  return flags;
}

// First words, and the second words of those that are groups.
std::map<std::string, std::set<std::string>> WordTree(const VerbList& verbs) {
  std::map<std::string, std::set<std::string>> tree;
  for (const auto& verb : verbs) {
    const std::vector<std::string> words = SplitText(verb->path(), ' ');
    auto& second = tree[words[0]];
    if (words.size() > 1) second.insert(words[1]);
  }
  return tree;
}

std::string Words(const std::set<std::string>& words) {
  return JoinText(std::vector<std::string>(words.begin(), words.end()), " ");
}

std::string FlagNames(Verb* verb) {
  std::vector<std::string> names;
  for (const Flag& flag : FlagsOf(verb)) names.push_back(flag.name);
  return JoinText(names, " ");
}

// Bash and zsh (by its bash emulation) share one function.
std::string BashScript(const VerbList& verbs) {
  std::string text = R"(# Completion of tidepool's verbs and flags. Load it with: source <(tidepool completion bash)
_tidepool() {
  local current="${COMP_WORDS[COMP_CWORD]}" first="${COMP_WORDS[1]}" words=""
  if [ "$COMP_CWORD" -gt 1 ] && [ "${current#-}" = "$current" ]; then
    case "${COMP_WORDS[COMP_CWORD-1]}" in
      -o|--output) words="text json" ;;
    esac
  fi
  if [ -z "$words" ] && [ "$COMP_CWORD" -eq 1 ]; then
)";
  std::vector<std::string> first;
  for (const auto& [word, second] : WordTree(verbs)) first.push_back(word);
  text += fmt::format(
      "    words=\"{}\"\n  elif [ -z \"$words\" ] && [ \"$COMP_CWORD\" -eq 2 ] && [ \"${{current#-}}\" = \"$current\" ]; then\n  "
      "  case \"$first\" in\n",
      JoinText(first, " "));
  for (const auto& [word, second] : WordTree(verbs)) {
    if (!second.empty()) text += fmt::format("      {}) words=\"{}\" ;;\n", word, Words(second));
  }
  text += "      completion) words=\"bash zsh fish\" ;;\n    esac\n  fi\n";
  text += "  if [ -z \"$words\" ] && [ \"${current#-}\" != \"$current\" ]; then\n    case \"$first ${COMP_WORDS[2]}\" in\n";
  // Verbs of two words first: the pattern of one word matches anything behind it.
  for (const size_t count : {size_t{2}, size_t{1}}) {
    for (const auto& verb : verbs) {
      if (SplitText(verb->path(), ' ').size() != count) continue;
      text += fmt::format("      \"{}\"{}) words=\"{}\" ;;\n", verb->path(), count == 1 ? "\" \"*" : "", FlagNames(verb.get()));
    }
  }
  text += R"(    esac
  fi
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _tidepool tidepool
)";
  return text;
}

std::string FishQuoted(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "'";
}

std::string FishScript(const VerbList& verbs) {
  std::string text = "# Completion of tidepool's verbs and flags. Load it with: tidepool completion fish | source\n";
  std::set<std::string> groups;
  for (const auto& verb : verbs) {
    const std::vector<std::string> words = SplitText(verb->path(), ' ');
    std::string condition = "__fish_use_subcommand";
    if (words.size() > 1) {
      if (groups.insert(words[0]).second) {
        text +=
            fmt::format("complete -c tidepool -n __fish_use_subcommand -a {} -d {}\n", words[0], FishQuoted("group of verbs"));
      }
      condition = fmt::format("'__fish_seen_subcommand_from {}'", words[0]);
    }
    text += fmt::format("complete -c tidepool -n {} -a {} -d {}\n", condition, words.back(), FishQuoted(verb->summary()));
    std::string seen = fmt::format("__fish_seen_subcommand_from {}", words[0]);
    if (words.size() > 1) seen += fmt::format("; and __fish_seen_subcommand_from {}", words[1]);
    for (const Flag& flag : FlagsOf(verb.get())) {
      text += fmt::format("complete -c tidepool -n '{}' -l {}{} -d {}\n", seen, flag.name.substr(2),
                          flag.takes_value ? " -r" : "", FishQuoted(flag.help));
    }
  }
  text += "complete -c tidepool -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'\n";
  return text;
}

}  // namespace

StatusOr<std::string> CompletionScript(std::string_view shell, const VerbList& verbs) {
  if (shell == "bash") return BashScript(verbs);
  if (shell == "zsh") {
    return "#compdef tidepool\nautoload -U +X bashcompinit && bashcompinit\n" + BashScript(verbs);
  }
  if (shell == "fish") return FishScript(verbs);
  return InvalidArgument("there is no completion for shell '{}'; allowed: bash, zsh, fish", shell);
}

}  // namespace tidepool::cli
