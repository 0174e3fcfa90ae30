// Verbs about the program itself and the machine: doctor, config print, completion, version.
#include <cstdio>

#include "base/json.h"
#include "base/text.h"
#include "cli/command_line.h"
#include "cli/completion.h"
#include "cli/doctor.h"
#include "cli/verb.h"

namespace tidepool::cli {
namespace {

class DoctorVerb : public Verb {
 public:
  std::string path() const override { return "doctor"; }
  std::string summary() const override { return "Say what of this machine will hurt, and how to mend it"; }
  std::string details() const override {
    return "Levels: ok, warn (works, but slower or with less), bad (something will fail).\n"
           "Nothing is changed; the commands to mend a finding are printed, not run.";
  }
  void Register(OptionTable* table) override {
    table->Add({.key = "doctor.strict", .help = "Exit with 1 if a finding is bad"}, &strict_);
  }
  Status Run(const VerbContext& context) override {
    const MachineFacts facts = CollectFacts();
    const std::vector<Finding> findings = Diagnose(facts);
    fmt::print("{}",
               context.output == OutputFormat::kJson ? FindingsJson(facts, findings) : FindingsText(findings, context.color));
    if (!strict_) return {};
    for (const Finding& finding : findings) {
      if (finding.level == FindingLevel::kBad) return FailedPrecondition("{}: {}", finding.name, finding.seen);
    }
    return {};
  }

 private:
  bool strict_ = false;
};

// The name under which bug reports of other serving systems ask for the same facts.
class CollectEnvVerb : public Verb {
 public:
  std::string path() const override { return "collect-env"; }
  std::string summary() const override { return "Print the findings of doctor as JSON, for a bug report"; }
  Status Run(const VerbContext&) override {
    const MachineFacts facts = CollectFacts();
    fmt::print("{}", FindingsJson(facts, Diagnose(facts)));
    return {};
  }
};

class ConfigPrintVerb : public Verb {
 public:
  explicit ConfigPrintVerb(const VerbList* verbs) : verbs_(verbs) {}
  std::string path() const override { return "config print"; }
  std::string summary() const override { return "Print every option's value and where it comes from"; }
  std::string details() const override {
    return "Order: default < file < environment < flag. The output is itself a configuration file:\n"
           "  tidepool config print > tidepool.toml";
  }
  bool reads_config() const override { return true; }
  void Register(OptionTable* table) override {
    for (const auto& verb : *verbs_) {
      if (verb.get() == this || !verb->reads_config()) continue;
      OptionTable other;
      verb->Register(&other);
      for (const OptionTable::Entry& entry : other.entries()) {
        if (table->FindKey(entry.info.key) != nullptr) continue;
        OptionInfo info = entry.info;
        info.advanced = true;
        if (table->FindFlag(info.flag) != nullptr) {
          info.flag = info.key;
          for (char& c : info.flag) c = c == '.' || c == '_' ? '-' : c;
          // "train.device" and the flag of "node.train_device" are the same word.
          const std::string by_key = info.flag;
          for (int i = 2; table->FindFlag(info.flag) != nullptr; ++i) info.flag = fmt::format("{}-{}", by_key, i);
        }
        table->AddCustom(std::move(info), entry.type, entry.set, entry.get);
      }
    }
  }
  Status Run(const VerbContext& context) override {
    fmt::print("{}", context.output == OutputFormat::kJson ? context.options->PrintJson() : context.options->PrintToml());
    return {};
  }

 private:
  const VerbList* verbs_;
};

class CompletionVerb : public Verb {
 public:
  explicit CompletionVerb(const VerbList* verbs) : verbs_(verbs) {}
  std::string path() const override { return "completion"; }
  std::string summary() const override { return "Print a completion script for bash, zsh or fish"; }
  std::string details() const override { return "Bash: source <(tidepool completion bash)"; }
  std::vector<Positional> positionals() override {
    return {{.name = "SHELL", .help = "bash, zsh or fish", .values = &shell_, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string script, CompletionScript(shell_[0], *verbs_));
    if (context.output == OutputFormat::kJson) {
      fmt::print("{{\"shell\":{},\"script\":{}}}\n", JsonQuoted(shell_[0]), JsonQuoted(script));
    } else {
      fmt::print("{}", script);
    }
    return {};
  }

 private:
  const VerbList* verbs_;
  std::vector<std::string> shell_;
};

class VersionVerb : public Verb {
 public:
  std::string path() const override { return "version"; }
  std::string summary() const override { return "Print the version"; }
  Status Run(const VerbContext& context) override {
    if (context.output == OutputFormat::kJson) {
      const nlohmann::ordered_json json = {{"name", "tidepool"}, {"version", TIDEPOOL_VERSION}, {"compiler", __VERSION__}};
      fmt::print("{}\n", json.dump());
    } else {
      fmt::print("tidepool {}\n", TIDEPOOL_VERSION);
    }
    return {};
  }
};

}  // namespace

void AddToolVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<DoctorVerb>());
  verbs->push_back(std::make_unique<CollectEnvVerb>());
  verbs->push_back(std::make_unique<ConfigPrintVerb>(verbs));
  verbs->push_back(std::make_unique<CompletionVerb>(verbs));
  verbs->push_back(std::make_unique<VersionVerb>());
}

}  // namespace tidepool::cli
