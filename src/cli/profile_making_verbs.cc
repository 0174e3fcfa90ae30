// Verbs that make a profile bundle: profile (measures a device), profile import, profile copy.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <limits>
#include <system_error>

#include "base/fd.h"
#include "base/json.h"
#include "base/process.h"
#include "cli/print.h"
#include "cli/profile_measure.h"
#include "cli/profile_verbs.h"
#include "profile/bundle_io.h"
#include "profile/check.h"
#include "profile/import.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;
using profile::Bundle;
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxImportBytes = int64_t{256} << 20;

// Flags of verbs that make a bundle of other data.
class MakeVerb : public BundleVerb {
 public:
  void Register(OptionTable* table) override {
    BundleVerb::Register(table);
    table->Add({.key = "profile.name", .help = "Name of the new bundle"}, &name_);
    table->Add({.key = "profile.replace", .help = "Replace a bundle of that name"}, &replace_);
  }

 protected:
  // Where the bundle goes; the directory of bundles is made.
  StatusOr<std::string> PathOfNew(const std::string& name) const {
    TIDEPOOL_RETURN_IF_ERROR(profile::CheckName("profile", name));
    std::error_code error;
    fs::create_directories(directory_, error);
    if (error) return ErrnoError(error.value(), fmt::format("making '{}'", directory_));
    return directory_ + "/" + name;
  }
  // Refuses what cannot be true.
  Status CheckAndKeep(const VerbContext& context, const Bundle& bundle, const Json& details) const {
    // All of them: there will be no bundle to check.
    TIDEPOOL_RETURN_IF_ERROR(ToStatus(profile::Check(bundle), bundle.manifest.name, std::numeric_limits<int64_t>::max()));
    return Keep(context, bundle, details);
  }
  Status Keep(const VerbContext& context, const Bundle& bundle, const Json& details) const;

  std::string name_;
  bool replace_ = false;
};

Status MakeVerb::Keep(const VerbContext& context, const Bundle& bundle, const Json& details) const {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string path, PathOfNew(name_));
  TIDEPOOL_RETURN_IF_ERROR(profile::WriteBundle(bundle, path, {.replace = replace_}));
  if (context.output == OutputFormat::kJson) {
    Json json = {{"name", name_},
                 {"path", path},
                 {"ops", bundle.ops.size()},
                 {"links", bundle.links.size()},
                 {"pins", bundle.pins.size()}};
    json.update(details);
    PrintJson(json);
  } else {
    fmt::print("{}: {} op rows, {} link rows, {} pin rows\n", path, bundle.ops.size(), bundle.links.size(), bundle.pins.size());
  }
  return {};
}

class ImportVerb : public MakeVerb {
 public:
  std::string path() const override { return "profile import"; }
  std::string summary() const override { return "Make a bundle of measurements that others published"; }
  std::string details() const override {
    return "Reads the tables of the GPU emulator's authors: medians per batch, device tables, iterations, pin times, memory "
           "(docs/profile.md\n"
           "has the columns). Rows that the table marks as doubtful are left out. The result is checked before it is written.\n"
           "Example: tidepool profile import profile_by_batch.tsv --gpu P100 --cudnn yes --card p100 --name p100-cudnn";
  }
  void Register(OptionTable* table) override {
    MakeVerb::Register(table);
    table->Add({.key = "profile.card",
                .help = "Bundle with the description of the hardware; empty: the one named as --gpu",
                .metavar = "NAME"},
               &card_);
    table->Add({.key = "profile.gpu", .help = "Device whose rows are taken, as the table writes it"}, &options_.gpu);
    table->Add({.key = "profile.cudnn", .help = "Rows measured with cuDNN: yes, no"}, &options_.cudnn);
    table->Add({.key = "profile.model", .help = "Model of a memory table"}, &options_.model);
    table->Add({.key = "profile.keep_flagged", .help = "Take rows that the table marks as doubtful"}, &options_.keep_flagged);
    table->Add({.key = "profile.source", .help = "Who measured; empty: the names of the files", .metavar = "TEXT"}, &source_);
    table->Add({.key = "profile.licence", .help = "Licence of the measurements", .metavar = "TEXT"}, &licence_);
    table->Add({.key = "profile.date", .help = "Date of the measurements", .metavar = "YYYY-MM-DD"}, &date_);
  }
  std::vector<Positional> positionals() override {
    return {{.name = "FILE", .help = "Tables to read", .values = &files_, .min = 1, .max = -1}};
  }
  Status Run(const VerbContext& context) override {
    if (name_.empty()) return InvalidArgument("--name: the new bundle needs a name");
    std::string card = card_;
    if (card.empty()) {
      for (const char c : options_.gpu) card += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    if (card.empty()) return InvalidArgument("--card: give the bundle that describes the hardware, for example p100");
    const StatusOr<Bundle> described = Load(card);
    if (!described.ok()) return Annotate(described.status(), "--card");

    profile::Importer importer(options_);
    std::string names;
    for (const std::string& file : files_) {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxImportBytes));
      TIDEPOOL_RETURN_IF_ERROR(importer.Add(file, text));
      names += (names.empty() ? "" : ", ") + file.substr(file.rfind('/') + 1);
    }
    TIDEPOOL_ASSIGN_OR_RETURN(Bundle bundle, importer.Finish());
    bundle.manifest.name = name_;
    bundle.manifest.hardware = described->manifest.hardware;
    bundle.manifest.source = source_.empty() ? "imported from " + names : source_;
    bundle.manifest.licence = licence_;
    bundle.manifest.date = date_;
    bundle.manifest.measured = true;
    if (!options_.cudnn.empty()) bundle.manifest.software["cudnn"] = options_.cudnn;

    const profile::ImportReport& report = importer.report();
    for (const auto& [reason, count] : report.flagged) fmt::print(stderr, "left out {} rows: {}\n", count, reason);
    if (report.not_measured > 0) fmt::print(stderr, "left out {} rows that were not measured\n", report.not_measured);
    if (report.duplicates > 0)
      fmt::print(stderr, "{} rows were there twice; the one with more repeats was kept\n", report.duplicates);
    if (report.without_time > 0) fmt::print(stderr, "left out the memory of {} batches without a time\n", report.without_time);
    return CheckAndKeep(context, bundle,
                        {{"flagged", report.flagged},
                         {"not_measured", report.not_measured},
                         {"duplicates", report.duplicates},
                         {"without_time", report.without_time}});
  }

 private:
  profile::ImportOptions options_;
  std::string card_, source_, licence_, date_;
  std::vector<std::string> files_;
};

class CopyVerb : public MakeVerb {
 public:
  std::string path() const override { return "profile copy"; }
  std::string summary() const override { return "Copy a bundle, for example a built-in one to change it"; }
  std::vector<Positional> positionals() override {
    return {{.name = "SOURCE", .help = "Name or path of a bundle", .values = &source_, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    if (name_.empty()) return InvalidArgument("--name: the copy needs a name");
    TIDEPOOL_ASSIGN_OR_RETURN(Bundle bundle, Load(source_[0]));
    bundle.manifest.name = name_;
    return CheckAndKeep(context, bundle, {{"source", source_[0]}});
  }

 private:
  std::vector<std::string> source_;
};

// Removes a directory with what is in it, when it goes out of scope.
struct Scratch {
  std::string path;
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

class MeasureVerb : public MakeVerb {
 public:
  std::string path() const override { return "profile"; }
  std::string summary() const override { return "Measure a device: times and memory of networks and their ops, copies, rates"; }
  std::string details() const override {
    return "Example: tidepool profile --device host --model resnet18 --model gpt2:layers=4 --name mine\n"
           "Runs the real networks in a process of its own and writes a bundle, which 'emulated:mine' replays. Leave the machine "
           "alone\n"
           "meanwhile. Other verbs: profile list, show, check, diff, import, copy.";
  }
  void Register(OptionTable* table) override {
    MakeVerb::Register(table);
    options_.Register(table);
    table->Add({.key = "measure.worker_binary",
                .help = "tidepool-worker; default: beside this program",
                .metavar = "PATH",
                .advanced = true},
               &worker_binary_);
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_RETURN_IF_ERROR(options_.Validate());
    if (options_.device != "host") {
      return Unimplemented("--device: '{}' cannot be measured by this build; allowed: host", options_.device);
    }
    if (name_.empty()) name_ = options_.device;
    TIDEPOOL_ASSIGN_OR_RETURN(const std::string path, PathOfNew(name_));
    if (!replace_ && fs::exists(fs::symlink_status(path)))
      return AlreadyExists("'{}' exists already; --replace replaces it", path);
    const Scratch scratch{fmt::format("{}/.measuring.{}", directory_, ::getpid())};
    options_.output = scratch.path;
    const std::string worker = worker_binary_.empty() ? ExecutableDirectory() + "/tidepool-worker" : worker_binary_;
    TIDEPOOL_RETURN_IF_ERROR(RunMeasurement(
        options_, worker, [](const std::string& text) { fmt::print(stderr, "{}\n", text); }, context.stopped));
    TIDEPOOL_ASSIGN_OR_RETURN(Bundle bundle, profile::ReadBundle(scratch.path));
    bundle.manifest.name = name_;
    // What was measured is kept even if it cannot be used: the faults say which rows to look at.
    const auto findings = profile::Check(bundle);
    TIDEPOOL_RETURN_IF_ERROR(Keep(context, bundle, {{"faults", profile::FaultsIn(findings)}}));
    return Annotate(ToStatus(findings, name_), "the bundle was written, but will not be used; measure again on a quiet machine");
  }

 private:
  MeasureOptions options_;
  std::string worker_binary_;
};

}  // namespace

void AddProfileMakingVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<MeasureVerb>());
  verbs->push_back(std::make_unique<ImportVerb>());
  verbs->push_back(std::make_unique<CopyVerb>());
}

}  // namespace tidepool::cli
