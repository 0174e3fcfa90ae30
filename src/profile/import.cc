#include "profile/import.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <set>

#include "base/text.h"
#include "profile/networks.h"
#include "profile/table.h"

namespace tidepool::profile {
namespace {

using std::string_view;

constexpr double kMiB = 1048576;
constexpr int64_t kMaxBatch = int64_t{1} << 40;
constexpr std::array<string_view, 13> kBatchColumns = {
    "gpu",           "cudnn",        "quality",          "model",          "batch",
    "n_samples",     "h2d_median_s", "compute_median_s", "compute_mean_s", "compute_p10_s",
    "compute_p90_s", "first_iter_s", "source_dir"};
constexpr string_view kIterationHeader = "cpu2gpu_time\tgpu_time";

std::string Lower(string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return lower;
}

// Whether a row of `seen` is asked for.
bool Matches(const std::string& wanted, string_view seen) { return wanted.empty() || Lower(wanted) == Lower(seen); }

// One image as the tables copy it: three channels in single precision.
double SampleBytes(const std::string& model) {
  const KnownNetwork* network = FindNetwork(model);
  const double side = network == nullptr ? 224 : network->image;
  return 3 * side * side * 4;
}

double Percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return Percentile(values, 0.5);
}

// Lines of fields without a header, where some writers leave out the last fields, or end lines with CR LF.
class LineReader {
 public:
  LineReader(std::string file, string_view text, char separator) : file_(std::move(file)), text_(text), separator_(separator) {}

  // Goes to the next line that is not empty.
  bool Next() {
    while (at_ < text_.size()) {
      const size_t end = std::min(text_.find('\n', at_), text_.size());
      string_view line = text_.substr(at_, end - at_);
      at_ = end + 1;
      ++line_;
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty()) continue;
      fields_.clear();
      for (size_t begin = 0; begin <= line.size();) {
        const size_t stop = std::min(line.find(separator_, begin), line.size());
        fields_.emplace_back(begin + 1, line.substr(begin, stop - begin));
        begin = stop + 1;
      }
      return true;
    }
    return false;
  }

  size_t size() const { return fields_.size(); }
  string_view field(size_t i) const { return i < fields_.size() ? fields_[i].second : string_view(); }

  // The number in field i within the limits that tables have.
  StatusOr<double> Number(size_t i) const {
    const string_view text = field(i);
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= 1e-12 && value <= 1e12) return value;
    return Fault(i, fmt::format("is '{}'; allowed: a decimal number from 1e-12 to 1e12", Shown(text)));
  }
  StatusOr<int64_t> Batch(size_t i) const {
    const string_view text = field(i);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= 1 && value <= kMaxBatch) return value;
    return Fault(i, fmt::format("is '{}'; allowed: a batch from 1 to {}", Shown(text), kMaxBatch));
  }
  Status Fault(size_t i, string_view problem) const {
    return InvalidArgument("{}:{}:{}: field {} {}", file_, line_, i < fields_.size() ? fields_[i].first : 1, i + 1, problem);
  }

 private:
  std::string file_;
  string_view text_;
  char separator_;
  size_t at_ = 0;
  int64_t line_ = 0;
  std::vector<std::pair<size_t, string_view>> fields_;  // with the column where each begins
};

StatusOr<ImportFormat> Recognise(const std::string& file, string_view text) {
  const string_view first = TrimText(text.substr(0, text.find('\n')));
  if (first.starts_with("gpu\tcudnn\tquality\t")) return ImportFormat::kBatchTable;
  if (first == kIterationHeader) return ImportFormat::kIterations;
  const auto tabs = std::count(first.begin(), first.end(), '\t');
  const auto commas = std::count(first.begin(), first.end(), ',');
  if (tabs >= 7) return ImportFormat::kDeviceTable;
  if (tabs == 2) return ImportFormat::kMemoryTable;
  if (tabs == 0 && commas == 1) return ImportFormat::kPinTable;
  return InvalidArgument(
      "{}:1:1: the first line is '{}'; allowed: a table per batch (header 'gpu cudnn quality ...'), a device table (12 fields, "
      "tabs), "
      "iterations (header 'cpu2gpu_time gpu_time'), a pin table (batch,seconds) or a memory table (3 fields, tabs)",
      file, Shown(first));
}

// "dir/v100-cudnn_resnet50-batch128.csv" -> resnet50, 128.
struct FileKey {
  std::string gpu, model;
  int64_t batch = 0;
};
StatusOr<FileKey> KeyOfFile(const std::string& file) {
  const std::string stem = std::filesystem::path(file).stem().string();
  const size_t model = stem.find('_'), batch = stem.rfind("-batch");
  FileKey key;
  if (model != std::string::npos && batch != std::string::npos && model < batch) {
    const string_view digits = string_view(stem).substr(batch + 6);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), key.batch);
    key.gpu = stem.substr(0, model);
    key.model = stem.substr(model + 1, batch - model - 1);
    if (error == std::errc() && end == digits.data() + digits.size() && key.batch >= 1 && key.batch <= kMaxBatch &&
        !key.model.empty())
      return key;
  }
  return InvalidArgument("'{}': the name of a file of iterations is to be <gpu>_<model>-batch<N>.csv", file);
}

}  // namespace

std::string_view NameOf(ImportFormat format) {
  switch (format) {
    case ImportFormat::kBatchTable: return "batch-table";
    case ImportFormat::kDeviceTable: return "device-table";
    case ImportFormat::kIterations: return "iterations";
    case ImportFormat::kPinTable: return "pin-table";
    case ImportFormat::kMemoryTable: return "memory-table";
  }
  return "?";
}

struct Importer::Collected {
  std::map<OpKey, OpRow> ops;
  std::map<double, std::vector<double>> copies_us;  // by bytes: one per model
  std::map<int64_t, double> peak_bytes;             // by batch, of options.model
  std::vector<PinRow> pins;
  std::set<std::string> taken;    // devices of the rows, as options that choose them
  std::set<std::string> present;  // all devices of the files, as options; not more than can be shown

  // Whether the row is of the device that is asked for.
  bool Take(const ImportOptions& options, const std::string& gpu, const std::string& cudnn) {
    constexpr size_t kMost = 32;
    const std::string choice = cudnn.empty() ? fmt::format("--gpu '{}'", Shown(Lower(gpu)))
                                             : fmt::format("--gpu '{}' --cudnn {}", Shown(Lower(gpu)), Shown(cudnn));
    if (present.size() < kMost) present.insert(choice);
    if (!Matches(options.gpu, gpu) || (!cudnn.empty() && !Matches(options.cudnn, cudnn))) return false;
    if (taken.size() < kMost) taken.insert(choice);
    return true;
  }

  void AddStep(const std::string& model, int64_t batch, double copy_s, OpRow row, ImportReport* report) {
    row.key = {.model = model, .phase = Phase::kStep, .batch = batch};
    const auto [at, added] = ops.emplace(row.key, row);
    if (!added) {
      ++report->duplicates;
      if (row.repeats <= at->second.repeats) return;
      at->second = row;
    } else {
      ++report->rows;
    }
    if (copy_s > 0) copies_us[static_cast<double>(batch) * SampleBytes(model)].push_back(copy_s * 1e6);
  }
};

Importer::Importer(ImportOptions options) : options_(std::move(options)), collected_(std::make_unique<Collected>()) {}
Importer::~Importer() = default;

Status Importer::Add(const std::string& file, string_view text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const ImportFormat format, Recognise(file, text));
  switch (format) {
    case ImportFormat::kBatchTable: return AddBatchTable(file, text);
    case ImportFormat::kDeviceTable: return AddDeviceTable(file, text);
    case ImportFormat::kIterations: return AddIterations(file, text);
    case ImportFormat::kPinTable: return AddPinTable(file, text);
    case ImportFormat::kMemoryTable: return AddMemoryTable(file, text);
  }
  return {};
}

Status Importer::AddBatchTable(const std::string& file, string_view text) {
  TableReader reader(file, text, kBatchColumns);
  while (reader.NextRow()) {
    const std::string gpu(reader.Text()), cudnn(reader.Text()), quality(reader.Text()), model(reader.Text());
    const int64_t batch = reader.Integer(1, kMaxBatch);
    OpRow row;
    row.repeats = static_cast<int32_t>(reader.Integer(1, 1'000'000'000));
    const double copy_s = reader.Number();
    row.median_us = reader.PositiveNumber() * 1e6;
    reader.Number();  // the mean
    row.p10_us = reader.Number() * 1e6;
    row.p90_us = reader.Number() * 1e6;
    row.first_us = reader.Number() * 1e6;
    reader.Text();  // the directory of the series
    if (!reader.row_ok()) continue;
    if (!collected_->Take(options_, gpu, cudnn)) continue;
    if (quality != "ok" && !options_.keep_flagged) {
      ++report_.flagged[quality];
      continue;
    }
    collected_->AddStep(model, batch, copy_s, std::move(row), &report_);
  }
  return reader.faults().ToStatus();
}

Status Importer::AddDeviceTable(const std::string& file, string_view text) {
  LineReader reader(file, text, '\t');
  while (reader.Next()) {
    if (reader.size() < 8 || reader.size() > 12) {
      return reader.Fault(0, fmt::format("begins a line of {} fields; allowed: 8 to 12", reader.size()));
    }
    const std::string gpu(reader.field(0)), model(reader.field(2));
    for (const size_t i : {0, 2}) {
      const std::string fault = TextFault(reader.field(i));
      if (reader.field(i).empty() || !fault.empty()) return reader.Fault(i, fault.empty() ? "is empty" : fault);
    }
    if (!collected_->Take(options_, gpu, "")) continue;
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t batch, reader.Batch(3));
    const string_view compute = reader.field(7);
    if (compute.starts_with('#') || compute == "N/A") {
      ++report_.not_measured;
      continue;
    }
    TIDEPOOL_ASSIGN_OR_RETURN(const double copy_s, reader.Number(6));
    TIDEPOOL_ASSIGN_OR_RETURN(const double compute_s, reader.Number(7));
    collected_->AddStep(model, batch, copy_s, {.median_us = compute_s * 1e6}, &report_);
  }
  return {};
}

Status Importer::AddIterations(const std::string& file, string_view text) {
  TIDEPOOL_ASSIGN_OR_RETURN(const FileKey key, KeyOfFile(file));
  if (!collected_->Take(options_, key.gpu, "")) return {};
  LineReader reader(file, text, '\t');
  reader.Next();  // the header
  std::vector<double> copies, times;
  while (reader.Next()) {
    if (reader.size() != 2) return reader.Fault(0, fmt::format("begins a line of {} fields; allowed: 2", reader.size()));
    TIDEPOOL_ASSIGN_OR_RETURN(copies.emplace_back(), reader.Number(0));
    TIDEPOOL_ASSIGN_OR_RETURN(times.emplace_back(), reader.Number(1));
  }
  if (times.size() < 2)
    return InvalidArgument("{}: {} iterations; allowed: 2 or more, the first of which is the warm-up", file, times.size());
  OpRow row;
  row.first_us = times[0] * 1e6;
  std::vector<double> later(times.begin() + 1, times.end());
  std::sort(later.begin(), later.end());
  row.repeats = static_cast<int32_t>(later.size());
  row.median_us = Percentile(later, 0.5) * 1e6;
  row.p10_us = Percentile(later, 0.1) * 1e6;
  row.p90_us = Percentile(later, 0.9) * 1e6;
  collected_->AddStep(key.model, key.batch, Median({copies.begin() + 1, copies.end()}), std::move(row), &report_);
  return {};
}

Status Importer::AddPinTable(const std::string& file, string_view text) {
  LineReader reader(file, text, ',');
  while (reader.Next()) {
    if (reader.size() != 2) return reader.Fault(0, fmt::format("begins a line of {} fields; allowed: 2", reader.size()));
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t batch, reader.Batch(0));
    TIDEPOOL_ASSIGN_OR_RETURN(const double seconds, reader.Number(1));
    collected_->pins.push_back({static_cast<double>(batch) * SampleBytes(""), seconds * 1e6});
    ++report_.rows;
  }
  return {};
}

Status Importer::AddMemoryTable(const std::string& file, string_view text) {
  if (options_.model.empty()) return InvalidArgument("{}: a memory table does not name its model: give the model", file);
  LineReader reader(file, text, '\t');
  while (reader.Next()) {
    if (reader.size() != 3) return reader.Fault(0, fmt::format("begins a line of {} fields; allowed: 3", reader.size()));
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t batch, reader.Batch(0));
    TIDEPOOL_ASSIGN_OR_RETURN(const double mebibytes, reader.Number(1));
    collected_->peak_bytes[batch] = mebibytes * kMiB;
  }
  return {};
}

StatusOr<Bundle> Importer::Finish() {
  const auto listed = [](const std::set<std::string>& choices) {
    return JoinText(std::vector<std::string>(choices.begin(), choices.end()), "; ");
  };
  if (collected_->taken.size() > 1)
    return InvalidArgument("the tables hold several devices; choose one of: {}", listed(collected_->taken));
  Bundle bundle;
  for (const auto& [key, row] : collected_->ops) bundle.ops.push_back(row);
  for (const auto& [bytes, times_us] : collected_->copies_us)
    bundle.links.push_back({LinkKind::kHostToDevice, /*pinned=*/true, bytes, Median(times_us)});
  bundle.pins = collected_->pins;
  for (const auto& [batch, bytes] : collected_->peak_bytes) {
    const auto row = std::find_if(bundle.ops.begin(), bundle.ops.end(), [&, at = batch](const OpRow& op) {
      return op.key.model == options_.model && op.key.batch == at;
    });
    if (row == bundle.ops.end()) {
      ++report_.without_time;
    } else {
      row->memory.peak_bytes = bytes;
      ++report_.rows;
    }
  }
  if (bundle.ops.empty() && bundle.pins.empty()) {
    return NotFound("no row was taken{}", collected_->present.empty() ? "" : "; the tables hold: " + listed(collected_->present));
  }
  return bundle;
}

}  // namespace tidepool::profile
