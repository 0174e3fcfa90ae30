#include "profile/plan_csv.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "base/text.h"
#include "base/units.h"
#include "profile/table.h"

namespace tidepool::profile {
namespace {

constexpr char kOpHeader[] =
    "op_name,forward-compute,backward-compute,input_size,output_size,weights,activations,fwd_reserved,bwd_reserved";
constexpr char kCollectiveHeader[] = "data_size(MB),time(ms)";
constexpr double kSkipped = 1e9, kFailed = 1e6;  // in place of a collective's milliseconds
constexpr size_t kMaxFileBytes = size_t{16} << 20;
constexpr size_t kMaxFiles = 100000;
constexpr size_t kMaxRows = 65535;  // of a table: as many ops as an op list may have
constexpr size_t kMaxSizes = 4096;  // of a link
// Microseconds, milliseconds, MiB, GB/s, where they are not zero. Products and quotients of two such numbers are finite.
constexpr double kLeastNumber = 1e-9, kMostNumber = 1e12;

constexpr std::pair<const char*, CollectiveKind> kCollectives[] = {{"all_gather", CollectiveKind::kAllGather},
                                                                   {"all_reduce", CollectiveKind::kAllReduce},
                                                                   {"reduce_scatter", CollectiveKind::kReduceScatter},
                                                                   {"all_to_all", CollectiveKind::kAllToAll}};

// Lines without their ends; empty ones at the end are dropped. Of a text with more than kMaxRows + 1 lines the first kMaxRows
// + 2.
std::vector<std::string_view> LinesOf(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty() && lines.size() < kMaxRows + 2) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    lines.push_back(line);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  while (text.empty() && !lines.empty() && TrimText(lines.back()).empty()) lines.pop_back();
  return lines;
}

StatusOr<double> ReadNumber(std::string_view field, const std::string& file, size_t line, std::string_view column) {
  const std::string_view text = TrimText(field);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool number = error == std::errc() && end == text.data() + text.size();
  if (!number || !(value == 0 || (value >= kLeastNumber && value <= kMostNumber))) {
    return InvalidArgument("{}:{}: column '{}' is '{}'; allowed: 0, or a number from {} to {}", file, line, column, Shown(text),
                           kLeastNumber, kMostNumber);
  }
  return std::abs(value);  // of -0
}

// Fields are counted before they are cut out: a line of nothing but commas becomes a list of strings many times its size.
size_t FieldsIn(std::string_view line) {
  return line.empty() ? 0 : static_cast<size_t>(std::count(line.begin(), line.end(), ',')) + 1;
}

StatusOr<std::vector<std::string>> FieldsOf(std::string_view text, size_t count, const std::string& file, size_t line) {
  if (FieldsIn(text) != count) return InvalidArgument("{}:{}: {} fields; allowed: {}", file, line, FieldsIn(text), count);
  return SplitText(text, ',');
}

StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return NotFound("cannot read {}: {}", path.string(), error.message());
  if (size > kMaxFileBytes) {
    return InvalidArgument("{} has {} bytes; allowed for a profile table: {}", path.string(), size, kMaxFileBytes);
  }
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return Unavailable("cannot read {}", path.string());
  return std::move(text).str();
}

// "1_3B" of gpt is "gpt:1.3b".
std::string ModelNameOf(std::string_view family, std::string_view size) {
  if (size == "scale-layer") return std::string(family) + "-layers";
  std::string name = (family == "resnet" ? "wresnet" : std::string(family)) + ":";
  for (const char c : size) name += c == '_' ? '.' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

// The number between `prefix` and the end of `part`.
std::optional<int32_t> NumberAfter(std::string_view part, std::string_view prefix, std::string_view suffix = "") {
  if (!part.starts_with(prefix) || !part.ends_with(suffix) || part.size() <= prefix.size() + suffix.size()) return std::nullopt;
  part = part.substr(prefix.size(), part.size() - prefix.size() - suffix.size());
  int32_t value = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
  if (error != std::errc() || end != part.data() + part.size() || value < 0) return std::nullopt;
  return value;
}

bool IsFamily(std::string_view name) { return name == "gpt" || name == "t5" || name == "resnet"; }

// Names such as gpt_1_3B_mbs4_tp2_algo0; nullopt: some other file.
std::optional<PlanCsvTableKey> OpTableKey(const std::string& stem) {
  const std::vector<std::string> parts = SplitText(stem, '_');
  if (parts.size() < 5 || !IsFamily(parts[0])) return std::nullopt;
  const size_t n = parts.size();
  const auto batch = NumberAfter(parts[n - 3], "mbs"), width = NumberAfter(parts[n - 2], "tp");
  const auto algorithm = NumberAfter(parts[n - 1], "algo");
  if (!batch || !width || !algorithm || *batch < 1 || *width < 1) return std::nullopt;
  const std::string size = JoinText(std::span(parts).subspan(1, n - 4), "_");
  return PlanCsvTableKey{ModelNameOf(parts[0], size), parts[0] == "resnet" ? DType::kF32 : DType::kF16, *batch, *width,
                         *algorithm};
}

// Names such as prim_gpt_1_3B_all_gather_2gpus.
std::optional<PlanCsvCollectiveKey> CollectiveKeyOf(const std::string& stem) {
  const std::vector<std::string> parts = SplitText(stem, '_');
  if (parts.size() < 5 || parts[0] != "prim" || !IsFamily(parts[1])) return std::nullopt;
  const auto ranks = NumberAfter(parts.back(), "", "gpus");
  if (!ranks || *ranks < 2) return std::nullopt;
  const std::string rest = JoinText(std::span(parts).subspan(2, parts.size() - 3), "_");
  for (const auto& [name, kind] : kCollectives) {
    const std::string suffix = std::string("_") + name;
    if (!rest.ends_with(suffix)) continue;
    return PlanCsvCollectiveKey{ModelNameOf(parts[1], rest.substr(0, rest.size() - suffix.size())), kind, *ranks};
  }
  return std::nullopt;
}

// Every table of a model must list the same ops in the same order.
class OpOrder {
 public:
  Status Check(const PlanCsvTableKey& key, const std::string& file, std::span<const OpRow> rows) {
    std::vector<std::string> names;
    for (const OpRow& row : rows) {
      if (row.key.phase == Phase::kForward) names.push_back(row.key.op);
    }
    const auto [entry, fresh] = first_.try_emplace(key.model, file, names);
    const auto& [first_file, first_names] = entry->second;
    if (fresh || first_names == names) return {};
    const auto [mine, other] = std::mismatch(names.begin(), names.end(), first_names.begin(), first_names.end());
    return InvalidArgument("{}:{}: op '{}' where {} has '{}'; tables of one model must list the same ops", file,
                           mine - names.begin() + 2, mine == names.end() ? "(end)" : Shown(*mine), first_file,
                           other == first_names.end() ? "(end)" : Shown(*other));
  }

 private:
  std::map<std::string, std::pair<std::string, std::vector<std::string>>> first_;
};

}  // namespace

Status ParsePlanOpTable(std::string_view text, const std::string& file, const PlanCsvTableKey& key, std::vector<OpRow>* rows) {
  const std::vector<std::string_view> lines = LinesOf(text);
  if (lines.empty() || TrimText(lines[0]) != kOpHeader) {
    return InvalidArgument("{}:1: the header is '{}'; allowed: '{}'", file, lines.empty() ? "" : Shown(lines[0]), kOpHeader);
  }
  if (lines.size() == 1) return InvalidArgument("{}:2: there is no row after the header", file);
  if (lines.size() > kMaxRows + 1) return InvalidArgument("{}: more than {} rows; allowed: up to that", file, kMaxRows);
  const std::vector<std::string> columns = SplitText(kOpHeader, ',');
  std::set<std::string> seen;
  for (size_t i = 1; i < lines.size(); ++i) {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> fields, FieldsOf(lines[i], columns.size(), file, i + 1));
    const std::string name(TrimText(fields[0]));
    if (name.empty()) return InvalidArgument("{}:{}: column 'op_name' is empty", file, i + 1);
    if (const std::string fault = TextFault(name); !fault.empty()) {
      return InvalidArgument("{}:{}: column 'op_name', '{}', {}", file, i + 1, Shown(name), fault);
    }
    if (!seen.insert(name).second) return InvalidArgument("{}:{}: op '{}' appears twice", file, i + 1, Shown(name));
    double value[9] = {};
    for (size_t c = 1; c < columns.size(); ++c) {
      TIDEPOOL_ASSIGN_OR_RETURN(value[c], ReadNumber(fields[c], file, i + 1, columns[c]));
      if (c <= 2 && (value[c] == kSkipped || value[c] == kFailed)) {
        return InvalidArgument("{}:{}: column '{}' of op '{}' is {}, the mark of a failed measurement; leave the table out", file,
                               i + 1, columns[c], Shown(name), value[c]);
      }
    }
    OpRow row;
    row.key = {key.model, name, Phase::kForward, key.batch, key.dtype, key.tensor_parallel, key.algorithm};
    row.median_us = value[1];
    row.memory = {.input_bytes = value[3] * kMiB,
                  .output_bytes = value[4] * kMiB,
                  .weight_bytes = value[5] * kMiB,
                  .activation_bytes = value[6] * kMiB,
                  .reserved_bytes = value[7] * kMiB};
    rows->push_back(row);
    row.key.phase = Phase::kBackward;
    row.median_us = value[2];
    row.memory = {.reserved_bytes = value[8] * kMiB};
    rows->push_back(std::move(row));
  }
  return {};
}

Status ParsePlanCollectiveTable(std::string_view text, const std::string& file, const PlanCsvCollectiveKey& key,
                                std::vector<CollectiveRow>* rows, std::vector<std::string>* refused) {
  const std::vector<std::string_view> lines = LinesOf(text);
  if (lines.empty() || TrimText(lines[0]) != kCollectiveHeader) {
    return InvalidArgument("{}:1: the header is '{}'; allowed: '{}'", file, lines.empty() ? "" : Shown(lines[0]),
                           kCollectiveHeader);
  }
  if (lines.size() > kMaxRows + 1) return InvalidArgument("{}: more than {} rows; allowed: up to that", file, kMaxRows);
  std::set<double> seen;
  for (size_t i = 1; i < lines.size(); ++i) {
    TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<std::string> fields, FieldsOf(lines[i], 2, file, i + 1));
    TIDEPOOL_ASSIGN_OR_RETURN(const double mib, ReadNumber(fields[0], file, i + 1, "data_size(MB)"));
    TIDEPOOL_ASSIGN_OR_RETURN(const double ms, ReadNumber(fields[1], file, i + 1, "time(ms)"));
    if (!seen.insert(mib).second) return InvalidArgument("{}:{}: size {} appears twice", file, i + 1, mib);
    if (ms == kSkipped || ms == kFailed) {
      refused->push_back(fmt::format("{} {} of {}, {} MiB: {}", key.model, NameOf(key.kind), key.ranks, mib,
                                     ms == kSkipped ? "skipped by its authors" : "failed"));
      continue;
    }
    rows->push_back({key.model, key.kind, key.ranks, mib * kMiB, ms * 1000});
  }
  return {};
}

Status ParsePlanLinkTable(std::string_view text, const std::string& file, LinkKind kind, std::vector<LinkRow>* rows) {
  const std::vector<std::string_view> lines = LinesOf(text);
  if (lines.size() != 2) {
    return InvalidArgument("{}: {}{} lines; allowed: 2, sizes in MiB and GB/s", file, lines.size() > kMaxRows ? "at least " : "",
                           lines.size());
  }
  for (size_t i = 0; i < 2; ++i) {
    if (FieldsIn(lines[i]) > kMaxSizes) {
      return InvalidArgument("{}:{}: {} fields; allowed: at most {}", file, i + 1, FieldsIn(lines[i]), kMaxSizes);
    }
  }
  const std::vector<std::string> sizes = SplitText(lines[0], ','), speeds = SplitText(lines[1], ',');
  if (sizes.size() != speeds.size()) {
    return InvalidArgument("{}:2: {} fields; allowed: {}, as in line 1", file, speeds.size(), sizes.size());
  }
  double last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    TIDEPOOL_ASSIGN_OR_RETURN(const double mib, ReadNumber(sizes[i], file, 1, fmt::format("{}", i + 1)));
    TIDEPOOL_ASSIGN_OR_RETURN(const double speed, ReadNumber(speeds[i], file, 2, fmt::format("{}", i + 1)));
    if (mib <= last) return InvalidArgument("{}:1: size {} after {}; allowed: sizes that grow", file, mib, last);
    if (speed <= 0) return InvalidArgument("{}:2: speed {} of size {}; allowed: above 0", file, speed, mib);
    last = mib;
    // The source divides MiB by GB/s as if a GB had 1000 MiB, and so do the plans that were priced with it.
    rows->push_back({.kind = kind, .bytes = mib * kMiB, .median_us = mib / (speed * 1e-3)});
  }
  return {};
}

StatusOr<PlanCsvDatabase> ReadPlanCsv(const std::string& directory, const PlanCsvOptions& options) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<fs::path> paths;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".csv") paths.push_back(it->path());
    if (paths.size() > kMaxFiles) return InvalidArgument("{} has more than {} CSV files", directory, kMaxFiles);
  }
  if (error) return NotFound("cannot list the profile folder '{}': {}", directory, error.message());
  std::sort(paths.begin(), paths.end());

  PlanCsvDatabase database;
  OpOrder order;
  std::set<std::string> present;
  const auto wanted = [&](const std::string& model) {
    return options.models.empty() || std::find(options.models.begin(), options.models.end(), model) != options.models.end();
  };
  for (const fs::path& path : paths) {
    const std::string stem = path.stem().string(), file = path.string();
    Bundle& bundle = database.bundle;
    if (const auto key = OpTableKey(stem)) {
      present.insert(key->model);
      if (!wanted(key->model)) continue;
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
      const size_t before = bundle.ops.size();
      TIDEPOOL_RETURN_IF_ERROR(ParsePlanOpTable(text, file, *key, &bundle.ops));
      TIDEPOOL_RETURN_IF_ERROR(order.Check(*key, file, std::span(bundle.ops).subspan(before)));
    } else if (const auto prim = CollectiveKeyOf(stem)) {
      if (!wanted(prim->model)) continue;
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
      TIDEPOOL_RETURN_IF_ERROR(ParsePlanCollectiveTable(text, file, *prim, &bundle.collectives, &database.refused));
    } else if (stem == "p2p_intra_node" || stem == "p2p_inter_node") {
      TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
      const LinkKind kind = stem == "p2p_intra_node" ? LinkKind::kPeer : LinkKind::kNetwork;
      TIDEPOOL_RETURN_IF_ERROR(ParsePlanLinkTable(text, file, kind, &bundle.links));
    } else {
      continue;
    }
    ++database.files;
  }
  if (database.bundle.ops.empty()) {
    return NotFound("'{}' has no op tables of {}; it has: {}", directory,
                    options.models.empty() ? "any model" : JoinText(options.models, ", "),
                    present.empty() ? "none" : JoinText(std::vector<std::string>(present.begin(), present.end()), ", "));
  }
  std::sort(database.bundle.ops.begin(), database.bundle.ops.end(), [](const OpRow& a, const OpRow& b) { return a.key < b.key; });
  database.bundle.manifest.name = fs::path(directory).filename().string();
  database.bundle.manifest.source = directory;
  database.bundle.manifest.measured = true;
  return database;
}

}  // namespace tidepool::profile
