// Verbs that read profile bundles: profile list, show, check, diff.
#include "cli/profile_verbs.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/json.h"
#include "base/text.h"
#include "base/units.h"
#include "cli/print.h"
#include "profile/check.h"
#include "profile/lookup.h"
#include "profile/open.h"

namespace tidepool::cli {
namespace {

using profile::Bundle;
using profile::BundlePlace;
using profile::Finding;
using profile::OpKey;
using profile::OpRow;
using Json = nlohmann::ordered_json;

std::string TimeText(double us) { return tidepool::FormatDuration(absl::Microseconds(us)); }
std::string SizeText(double bytes) { return bytes > 0 ? FormatBytes(std::llround(std::min(bytes, 0x1p62))) : "-"; }
std::string RateText(double rate) { return fmt::format("{:.4g} GB/s", rate / 1e9); }

Json FindingsJson(const std::vector<Finding>& findings) {
  Json json = Json::array();
  for (const Finding& finding : findings) {
    json.push_back({{"level", finding.level == Finding::Level::kFault ? "fault" : "note"},
                    {"check", finding.check},
                    {"where", finding.where},
                    {"text", finding.text}});
  }
  return json;
}

std::set<std::string> ModelsOf(const Bundle& bundle) {
  std::set<std::string> models;
  for (const OpRow& row : bundle.ops) models.insert(row.key.model);
  return models;
}

class ListVerb : public BundleVerb {
 public:
  std::string path() const override { return "profile list"; }
  std::string summary() const override { return "List profile bundles: your own and the built-in ones"; }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<BundlePlace> places, profile::ListBundles(directory_));
    Json json = Json::array();
    std::vector<std::vector<std::string>> rows = {{"NAME", "DEVICE", "TIMES", "ROWS", "MODELS", "STATUS", "SOURCE"}};
    for (const BundlePlace& place : places) {
      const StatusOr<Bundle> bundle = profile::LoadBundle(place);
      const std::vector<Finding> findings = bundle.ok() ? profile::Check(*bundle) : std::vector<Finding>();
      const int64_t faults = profile::FaultsIn(findings);
      if (!bundle.ok()) {
        json.push_back({{"name", place.name}, {"path", place.path}, {"error", ToString(bundle.status())}});
        rows.push_back(
            {place.name, "-", "-", "-", "-", "unreadable", JoinText(SplitText(MessageOf(bundle.status()), '\n'), "; ")});
        continue;
      }
      const profile::Manifest& manifest = bundle->manifest;
      json.push_back({{"name", place.name},
                      {"path", place.path},
                      {"built_in", place.path.empty()},
                      {"device", manifest.hardware.name},
                      {"measured", manifest.measured},
                      {"rows", bundle->ops.size()},
                      {"models", ModelsOf(*bundle)},
                      {"source", manifest.source},
                      {"date", manifest.date},
                      {"faults", faults}});
      rows.push_back({place.name, manifest.hardware.name, manifest.measured ? "measured" : "estimated",
                      fmt::format("{}", bundle->ops.size()), fmt::format("{}", ModelsOf(*bundle).size()),
                      faults == 0 ? "ok" : fmt::format("{} faults", faults), manifest.source});
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintTable(rows, "lllrrll");
    }
    return {};
  }
};

Json HardwareJson(const profile::Hardware& hardware) {
  Json peaks = Json::object(), links = Json::object(), latencies = Json::object();
  for (const auto& [dtype, rate] : hardware.peak_flops) peaks[std::string(SafetensorsName(dtype))] = rate;
  for (const auto& [kind, rate] : hardware.link_bytes_per_s) links[std::string(NameOf(kind))] = rate;
  for (const auto& [kind, us] : hardware.link_latency_us) latencies[std::string(NameOf(kind))] = us;
  return {
      {"name", hardware.name},
      {"memory_bytes", hardware.memory_bytes},
      {"memory_bytes_per_s", hardware.memory_bytes_per_s},
      {"peak_flops", peaks},
      {"tf32_flops", hardware.tf32_flops},
      {"link_bytes_per_s", links},
      {"link_latency_us", latencies},
      {"launch_us", hardware.launch_us},
      {"efficiency",
       {{"compute", hardware.efficiency.compute}, {"memory", hardware.efficiency.memory}, {"link", hardware.efficiency.link}}}};
}

Json MemoryJson(const profile::OpMemory& memory) {
  return {{"input_bytes", memory.input_bytes},       {"output_bytes", memory.output_bytes},
          {"weight_bytes", memory.weight_bytes},     {"activation_bytes", memory.activation_bytes},
          {"reserved_bytes", memory.reserved_bytes}, {"peak_bytes", memory.peak_bytes}};
}

Json KeyJson(const OpKey& key) {
  return {{"model", key.model},
          {"op", key.op},
          {"phase", NameOf(key.phase)},
          {"batch", key.batch},
          {"dtype", SafetensorsName(key.dtype)},
          {"tensor_parallel", key.tensor_parallel},
          {"algorithm", key.algorithm}};
}

Json TimeJson(const profile::TimeEstimate& estimate) {
  return {{"median_us", estimate.median_us}, {"p10_us", estimate.p10_us},         {"p90_us", estimate.p90_us},
          {"first_us", estimate.first_us},   {"origin", NameOf(estimate.origin)}, {"method", NameOf(estimate.method)},
          {"error", estimate.error}};
}

class ShowVerb : public BundleVerb {
 public:
  std::string path() const override { return "profile show"; }
  std::string summary() const override { return "Show a bundle, or what it answers for a model and a batch"; }
  std::string details() const override {
    return "Without --model: the device, and one line per op with its affine fit. With --model: the times at --batch, with where "
           "each\n"
           "comes from: a row (measured), between or beyond rows (fitted), or the hardware's rates (estimated).\n"
           "Example: tidepool profile show h100 --model resnet50 --phase step --batch 32,400";
  }
  void Register(OptionTable* table) override {
    BundleVerb::Register(table);
    table->Add({.key = "profile.model", .help = "Model to answer for"}, &model_);
    table->Add({.key = "profile.op", .help = "An op of it; empty: the whole network"}, &op_);
    table->Add({.key = "profile.phase", .help = "forward, backward, step or optimizer"}, &phase_);
    table->Add({.key = "profile.dtype", .help = "F32, F16, BF16, ..."}, &dtype_);
    table->Add({.key = "profile.batch", .help = "Batches to answer for; empty: those of the rows", .metavar = "N,..."},
               &batches_);
  }
  std::vector<Positional> positionals() override {
    return {{.name = "NAME", .help = "Name or path of a bundle", .values = &name_, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& context) override {
    TIDEPOOL_ASSIGN_OR_RETURN(Bundle bundle, Load(name_[0]));
    const profile::Lookup lookup(std::make_shared<const Bundle>(std::move(bundle)));
    if (model_.empty()) return ShowBundle(context, lookup);
    return ShowAnswers(context, lookup);
  }

 private:
  // One entry per op, whatever the batch.
  static std::map<OpKey, std::vector<const OpRow*>> OpsOf(const Bundle& bundle) {
    std::map<OpKey, std::vector<const OpRow*>> ops;
    for (const OpRow& row : bundle.ops) {
      OpKey key = row.key;
      key.batch = 1;
      ops[key].push_back(&row);
    }
    return ops;
  }

  static Status ShowBundle(const VerbContext& context, const profile::Lookup& lookup) {
    const Bundle& bundle = lookup.bundle();
    const profile::Manifest& manifest = bundle.manifest;
    if (context.output == OutputFormat::kJson) {
      Json json = {{"name", manifest.name},
                   {"measured", manifest.measured},
                   {"source", manifest.source},
                   {"licence", manifest.licence},
                   {"date", manifest.date},
                   {"software", manifest.software},
                   {"hardware", HardwareJson(manifest.hardware)}};
      Json ops = Json::array(), links = Json::array(), collectives = Json::array(), pins = Json::array();
      for (const OpRow& row : bundle.ops) {
        Json entry = KeyJson(row.key);
        entry.update({{"repeats", row.repeats},
                      {"median_us", row.median_us},
                      {"p10_us", row.p10_us},
                      {"p90_us", row.p90_us},
                      {"first_us", row.first_us},
                      {"source", row.source}});
        entry.update(MemoryJson(row.memory));
        ops.push_back(std::move(entry));
      }
      for (const auto& row : bundle.links) {
        links.push_back({{"kind", NameOf(row.kind)}, {"pinned", row.pinned}, {"bytes", row.bytes}, {"median_us", row.median_us}});
      }
      for (const auto& row : bundle.collectives) {
        collectives.push_back({{"model", row.model},
                               {"kind", NameOf(row.kind)},
                               {"ranks", row.ranks},
                               {"bytes", row.bytes},
                               {"median_us", row.median_us}});
      }
      for (const auto& row : bundle.pins) pins.push_back({{"bytes", row.bytes}, {"median_us", row.median_us}});
      json["ops"] = std::move(ops);
      json["links"] = std::move(links);
      json["collectives"] = std::move(collectives);
      json["pins"] = std::move(pins);
      PrintJson(json);
      return {};
    }
    PrintManifest(manifest);
    if (bundle.ops.empty()) return {};
    fmt::print("\n");
    std::vector<std::vector<std::string>> rows = {
        {"MODEL", "OP", "PHASE", "DTYPE", "ROWS", "BATCHES", "FIXED", "PER SAMPLE", "FIT ERROR"}};
    for (const auto& [key, op_rows] : OpsOf(bundle)) {
      const StatusOr<profile::OpTimes> times = lookup.Find(key);
      const profile::AffineFit* fit = times.ok() ? times->fit() : nullptr;
      const int64_t first = op_rows.front()->key.batch, last = op_rows.back()->key.batch;
      rows.push_back(
          {key.model, key.op.empty() ? "-" : key.op, std::string(NameOf(key.phase)), std::string(SafetensorsName(key.dtype)),
           fmt::format("{}", op_rows.size()), first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last),
           fit == nullptr ? TimeText(op_rows[0]->median_us) : TimeText(fit->intercept),
           fit == nullptr ? "-" : TimeText(fit->slope), fit == nullptr ? "-" : fmt::format("{:.1f} %", 100 * fit->mean_error)});
    }
    PrintTable(rows, "llllrrrrr");
    return {};
  }

  static void PrintManifest(const profile::Manifest& manifest) {
    const profile::Hardware& hardware = manifest.hardware;
    fmt::print("name         {}\n", manifest.name);
    fmt::print("times        {}\n",
               manifest.measured ? "measured" : "estimated from the hardware's rates, but for rows with a source");
    fmt::print("source       {}{}\n", manifest.source, manifest.date.empty() ? "" : ", " + manifest.date);
    for (const auto& [name, version] : manifest.software) fmt::print("software     {} {}\n", name, version);
    fmt::print("device       {}\n", hardware.name);
    fmt::print("memory       {}, {}\n", SizeText(hardware.memory_bytes), RateText(hardware.memory_bytes_per_s));
    for (const auto& [dtype, rate] : hardware.peak_flops)
      fmt::print("peak         {} {:.4g} TFLOP/s\n", SafetensorsName(dtype), rate / 1e12);
    if (hardware.tf32_flops > 0) fmt::print("peak         TF32 {:.4g} TFLOP/s\n", hardware.tf32_flops / 1e12);
    for (const auto& [kind, rate] : hardware.link_bytes_per_s) fmt::print("link         {} {}\n", NameOf(kind), RateText(rate));
    fmt::print("launch       {}\n", TimeText(hardware.launch_us));
    fmt::print("efficiency   {:.3g} of the arithmetic, {:.3g} of the memory, {:.3g} of the links (for estimates)\n",
               hardware.efficiency.compute, hardware.efficiency.memory, hardware.efficiency.link);
  }

  Status ShowAnswers(const VerbContext& context, const profile::Lookup& lookup) {
    OpKey key = {.model = model_, .op = op_};
    TIDEPOOL_ASSIGN_OR_RETURN(key.phase, profile::ParsePhase(phase_));
    TIDEPOOL_ASSIGN_OR_RETURN(key.dtype, DTypeFromSafetensors(dtype_));
    TIDEPOOL_ASSIGN_OR_RETURN(const profile::OpTimes times, lookup.Find(key));
    std::vector<int64_t> batches;
    for (const std::string& text : batches_) {
      char* end = nullptr;
      const long long batch = std::strtoll(text.c_str(), &end, 10);
      if (text.empty() || *end != '\0' || batch < 1 || batch > int64_t{1} << 40)
        return InvalidArgument("--batch: '{}' is no batch; allowed: 1 to {}", text, int64_t{1} << 40);
      batches.push_back(batch);
    }
    if (batches.empty()) {
      for (const OpRow& row : lookup.bundle().ops) {
        OpKey same = row.key;
        same.batch = key.batch;
        if (same == key) batches.push_back(row.key.batch);
      }
    }
    if (batches.empty()) batches.push_back(1);
    Json json = Json::array();
    std::vector<std::vector<std::string>> rows = {
        {"BATCH", "TIME", "P10", "P90", "FIRST RUN", "PER SECOND", "PEAK MEMORY", "ORIGIN", "METHOD", "ERROR"}};
    for (const int64_t batch : batches) {
      const profile::TimeEstimate time = times.At(batch);
      const profile::MemoryEstimate memory = times.MemoryAt(batch);
      Json entry = {{"batch", batch}};
      entry.update(TimeJson(time));
      if (memory.known) {
        entry["memory"] = MemoryJson(memory.memory);
        entry["memory_origin"] = NameOf(memory.origin);
      }
      json.push_back(std::move(entry));
      rows.push_back({fmt::format("{}", batch), TimeText(time.median_us), TimeText(time.p10_us), TimeText(time.p90_us),
                      TimeText(time.first_us), fmt::format("{:.1f}", static_cast<double>(batch) / time.median_us * 1e6),
                      SizeText(memory.memory.peak_bytes), std::string(NameOf(time.origin)), std::string(NameOf(time.method)),
                      fmt::format("{:.1f} %", 100 * time.error)});
    }
    if (context.output == OutputFormat::kJson) {
      PrintJson(json);
    } else {
      PrintTable(rows, "rrrrrrrllr");
    }
    return {};
  }

  std::vector<std::string> name_, batches_;
  std::string model_, op_, phase_ = "step", dtype_ = "F32";
};

class CheckVerb : public BundleVerb {
 public:
  std::string path() const override { return "profile check"; }
  std::string summary() const override { return "Check whether the numbers of bundles can be true"; }
  std::string details() const override {
    return "Looks at FLOP rates against the device's peak, order in the batch, repeats, memory, link rates and units; lists "
           "everything\n"
           "it finds and exits with 1 if anything is a fault. Without names: all bundles.";
  }
  std::vector<Positional> positionals() override {
    return {{.name = "NAME", .help = "Names or paths of bundles; none: all", .values = &names_, .min = 0, .max = -1}};
  }
  Status Run(const VerbContext& context) override {
    std::vector<BundlePlace> places;
    if (names_.empty()) {
      TIDEPOOL_ASSIGN_OR_RETURN(places, profile::ListBundles(directory_));
    }
    for (const std::string& name : names_) {
      TIDEPOOL_ASSIGN_OR_RETURN(places.emplace_back(), profile::FindBundle(name, directory_));
    }
    Json json = Json::array();
    int64_t bad = 0;
    for (const BundlePlace& place : places) {
      const StatusOr<Bundle> bundle = profile::LoadBundle(place);
      const std::vector<Finding> findings = bundle.ok() ? profile::Check(*bundle) : std::vector<Finding>();
      const int64_t faults = bundle.ok() ? profile::FaultsIn(findings) : 1;
      bad += faults > 0;
      Json entry = {{"name", place.name}, {"ok", faults == 0}, {"faults", faults}, {"findings", FindingsJson(findings)}};
      if (!bundle.ok()) entry["error"] = ToString(bundle.status());
      json.push_back(std::move(entry));
      if (context.output == OutputFormat::kJson) continue;
      fmt::print("{}: {}\n", place.name, !bundle.ok() ? "cannot be read" : faults == 0 ? "ok" : fmt::format("{} faults", faults));
      if (!bundle.ok()) fmt::print("  {}\n", JoinText(SplitText(MessageOf(bundle.status()), '\n'), "\n  "));
      for (const Finding& finding : findings) {
        fmt::print("  {}  {}: {}: {}\n", finding.level == Finding::Level::kFault ? "fault" : "note ", finding.check,
                   finding.where, finding.text);
      }
    }
    if (context.output == OutputFormat::kJson) PrintJson(json);
    if (bad > 0) return FailedPrecondition("{} of {} bundles have faults", bad, places.size());
    return {};
  }

 private:
  std::vector<std::string> names_;
};

class DiffVerb : public BundleVerb {
 public:
  std::string path() const override { return "profile diff"; }
  std::string summary() const override { return "Compare two bundles row by row"; }
  std::string details() const override {
    return "RATIO is B's time over A's. Example: measure a device twice and ask for equal times within two percent:\n"
           "  tidepool profile diff first second --tolerance 2";
  }
  void Register(OptionTable* table) override {
    BundleVerb::Register(table);
    table->Add({.key = "profile.tolerance", .help = "Fail if the mean difference is more than so many percent; 0: never"},
               &tolerance_percent_);
  }
  std::vector<Positional> positionals() override {
    return {{.name = "A", .help = "Name or path of a bundle", .values = &a_, .min = 1, .max = 1},
            {.name = "B", .help = "Another one", .values = &b_, .min = 1, .max = 1}};
  }
  Status Run(const VerbContext& context) override;

 private:
  std::vector<std::string> a_, b_;
  double tolerance_percent_ = 0;
};

struct Difference {
  OpKey key;
  double a_us = 0, b_us = 0;
  double ratio() const { return b_us / a_us; }
};

Status DiffVerb::Run(const VerbContext& context) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Bundle a, Load(a_[0]));
  TIDEPOOL_ASSIGN_OR_RETURN(const Bundle b, Load(b_[0]));
  std::map<OpKey, double> left;
  for (const OpRow& row : a.ops) left[row.key] = row.median_us;
  std::vector<Difference> common;
  int64_t only_b = 0;
  for (const OpRow& row : b.ops) {
    const auto found = left.find(row.key);
    if (found == left.end()) {
      ++only_b;
      continue;
    }
    common.push_back({row.key, found->second, row.median_us});
    left.erase(found);
  }
  double sum = 0, largest = 0;
  for (const Difference& row : common) {
    sum += std::abs(row.ratio() - 1);
    largest = std::max(largest, std::abs(row.ratio() - 1));
  }
  const double mean = common.empty() ? 0 : sum / static_cast<double>(common.size());
  if (context.output == OutputFormat::kJson) {
    Json rows = Json::array();
    for (const Difference& row : common) {
      Json entry = KeyJson(row.key);
      entry.update({{"a_us", row.a_us}, {"b_us", row.b_us}, {"ratio", row.ratio()}});
      rows.push_back(std::move(entry));
    }
    PrintJson({{"a", {{"name", a.manifest.name}, {"hardware", HardwareJson(a.manifest.hardware)}}},
               {"b", {{"name", b.manifest.name}, {"hardware", HardwareJson(b.manifest.hardware)}}},
               {"same_hardware", a.manifest.hardware == b.manifest.hardware},
               {"rows", rows},
               {"only_a", left.size()},
               {"only_b", only_b},
               {"mean_difference", mean},
               {"largest_difference", largest}});
  } else {
    std::vector<std::vector<std::string>> rows = {{"ROW", "A", "B", "RATIO"}};
    for (const Difference& row : common)
      rows.push_back({ToText(row.key), TimeText(row.a_us), TimeText(row.b_us), fmt::format("{:.3f}", row.ratio())});
    if (!common.empty()) PrintTable(rows, "lrrr");
    fmt::print("{} rows in both, {} only in {}, {} only in {}; mean difference {:.2f} %, largest {:.2f} %{}\n", common.size(),
               left.size(), a_[0], only_b, b_[0], 100 * mean, 100 * largest,
               a.manifest.hardware == b.manifest.hardware ? "" : "; the hardware differs");
  }
  if (tolerance_percent_ > 0 && common.empty()) return FailedPrecondition("'{}' and '{}' have no row in common", a_[0], b_[0]);
  if (tolerance_percent_ > 0 && 100 * mean > tolerance_percent_) {
    return FailedPrecondition("the mean difference is {:.2f} %; allowed: {} %", 100 * mean, tolerance_percent_);
  }
  return {};
}

}  // namespace

void AddProfileVerbs(VerbList* verbs) {
  verbs->push_back(std::make_unique<ListVerb>());
  verbs->push_back(std::make_unique<ShowVerb>());
  verbs->push_back(std::make_unique<CheckVerb>());
  verbs->push_back(std::make_unique<DiffVerb>());
  AddProfileMakingVerbs(verbs);
}

}  // namespace tidepool::cli
