#include "train/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <set>

#include "base/json.h"
#include "base/units.h"

namespace tidepool::train {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "tidepool.journal";
constexpr int64_t kVersion = 1;
constexpr int64_t kLargestJournal = 4 * kGiB;

StatusOr<Json> ParseObject(const std::string& line, const std::set<std::string>& keys) {
  Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return InvalidArgument("not a JSON object: '{:.80}'", line);
  for (const auto& [key, value] : object.items()) {
    if (!keys.contains(key)) return InvalidArgument("unknown key '{}'; allowed: {}", key, fmt::join(keys, ", "));
  }
  for (const std::string& key : keys) {
    if (!object.contains(key)) return InvalidArgument("key '{}' is missing", key);
  }
  return object;
}

StatusOr<int64_t> Integer(const Json& object, const char* key, int64_t least) {
  const Json& value = object[key];
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) ||
      value.get<int64_t>() < least) {
    return InvalidArgument("key '{}' is {}; allowed: whole numbers from {}", key, value.dump(), least);
  }
  return value.get<int64_t>();
}

// Sixteen hexadecimal digits: JSON numbers do not carry 64 bits everywhere.
std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }
StatusOr<uint64_t> FromHex(const Json& object, const char* key) {
  const Json& value = object[key];
  uint64_t number = 0;
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
    if (text.size() == 16 && error == std::errc() && end == text.data() + text.size()) return number;
  }
  return InvalidArgument("key '{}' is {}; allowed: 16 hexadecimal digits", key, value.dump());
}

StatusOr<PositionRange> ParseRange(const Json& value) {
  if (!value.is_array() || value.size() != 2 || !value[0].is_number_integer() || !value[1].is_number_integer()) {
    return InvalidArgument("range {}; allowed: [begin, end]", value.dump());
  }
  const PositionRange range{value[0].get<int64_t>(), value[1].get<int64_t>()};
  if (range.begin < 0 || range.end <= range.begin) return InvalidArgument("range {} is empty or negative", value.dump());
  return range;
}

Json RangeJson(const PositionRange& range) { return Json::array({range.begin, range.end}); }

// The micro-batches of a step cover its positions exactly once.
Status CheckPartition(const JournalStep& step) {
  SampleLedger ledger(step.positions);
  for (const JournalMicroBatch& micro : step.micro_batches) {
    TIDEPOOL_ASSIGN_OR_RETURN(const SampleLedger::Ticket ticket, ledger.GetExactly(micro.ranges));
    TIDEPOOL_RETURN_IF_ERROR(ledger.Finish(ticket));
  }
  if (!ledger.done()) {
    return InvalidArgument("the micro-batches cover {} of the {} positions of [{}, {})", ledger.processed(),
                           step.positions.size(), step.positions.begin, step.positions.end);
  }
  return {};
}

Status CheckHeader(const std::string& path, const JournalHeader& journal, const JournalHeader& run) {
  std::vector<std::string> faults;
  auto compare = [&](const char* what, const auto& written, const auto& mine) {
    if (written != mine) faults.push_back(fmt::format("{} is {} in the journal and {} in this run", what, written, mine));
  };
  compare("model", journal.model, run.model);
  compare("seed", journal.seed, run.seed);
  compare("global_batch", journal.global_batch, run.global_batch);
  compare("dataset_size", journal.dataset_size, run.dataset_size);
  if (!faults.empty()) return FailedPrecondition("the journal '{}' does not fit: {}", path, fmt::join(faults, "; "));
  return {};
}

}  // namespace

std::string ToJson(const JournalHeader& header) {
  return Json{{"format", kFormat},
              {"version", kVersion},
              {"model", header.model},
              {"seed", Hex(header.seed)},
              {"global_batch", header.global_batch},
              {"dataset_size", header.dataset_size}}
      .dump();
}

StatusOr<JournalHeader> ParseJournalHeader(const std::string& line) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Json object,
                            ParseObject(line, {"format", "version", "model", "seed", "global_batch", "dataset_size"}));
  if (object["format"] != kFormat) return InvalidArgument("format {}; allowed: \"{}\"", object["format"].dump(), kFormat);
  if (object["version"] != kVersion)
    return InvalidArgument("version {}; this program reads version {}", object["version"].dump(), kVersion);
  if (!object["model"].is_string()) return InvalidArgument("key 'model' is {}; allowed: a string", object["model"].dump());
  JournalHeader header{.model = object["model"].get<std::string>()};
  TIDEPOOL_ASSIGN_OR_RETURN(header.seed, FromHex(object, "seed"));
  TIDEPOOL_ASSIGN_OR_RETURN(header.global_batch, Integer(object, "global_batch", 1));
  TIDEPOOL_ASSIGN_OR_RETURN(header.dataset_size, Integer(object, "dataset_size", 1));
  return header;
}

std::string ToJson(const JournalStep& step) {
  Json micro_batches = Json::array();
  for (const JournalMicroBatch& micro : step.micro_batches) {
    Json ranges = Json::array();
    for (const PositionRange& range : micro.ranges) ranges.push_back(RangeJson(range));
    micro_batches.push_back(Json{{"ranges", ranges}, {"rng", Hex(micro.rng_key)}});
  }
  return Json{
      {"epoch", step.epoch}, {"step", step.step}, {"positions", RangeJson(step.positions)}, {"micro_batches", micro_batches}}
      .dump();
}

StatusOr<JournalStep> ParseJournalStep(const std::string& line) {
  TIDEPOOL_ASSIGN_OR_RETURN(const Json object, ParseObject(line, {"epoch", "step", "positions", "micro_batches"}));
  JournalStep step;
  TIDEPOOL_ASSIGN_OR_RETURN(step.epoch, Integer(object, "epoch", 0));
  TIDEPOOL_ASSIGN_OR_RETURN(step.step, Integer(object, "step", 1));
  TIDEPOOL_ASSIGN_OR_RETURN(step.positions, ParseRange(object["positions"]));
  if (!object["micro_batches"].is_array()) return InvalidArgument("key 'micro_batches' is no array");
  for (const Json& entry : object["micro_batches"]) {
    TIDEPOOL_ASSIGN_OR_RETURN(const Json micro, ParseObject(entry.dump(), {"ranges", "rng"}));
    JournalMicroBatch parsed;
    if (!micro["ranges"].is_array()) return InvalidArgument("key 'ranges' is no array");
    for (const Json& range : micro["ranges"]) {
      TIDEPOOL_ASSIGN_OR_RETURN(const PositionRange one, ParseRange(range));
      parsed.ranges.push_back(one);
    }
    TIDEPOOL_ASSIGN_OR_RETURN(parsed.rng_key, FromHex(micro, "rng"));
    step.micro_batches.push_back(std::move(parsed));
  }
  TIDEPOOL_RETURN_IF_ERROR(CheckPartition(step));
  return step;
}

StatusOr<std::unique_ptr<JournalWriter>> JournalWriter::Create(const std::string& path, const JournalHeader& header) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("creating the journal '{}'", path));
  std::unique_ptr<JournalWriter> writer(new JournalWriter(path, std::move(fd), 0));
  TIDEPOOL_RETURN_IF_ERROR(writer->Write(ToJson(header)));
  return writer;
}

StatusOr<std::unique_ptr<JournalWriter>> JournalWriter::Resume(const std::string& path, const JournalHeader& header,
                                                               int64_t keep_bytes) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kLargestJournal));
  if (static_cast<int64_t>(content.size()) < keep_bytes || keep_bytes < 1 || content[keep_bytes - 1] != '\n') {
    return DataLoss("the journal '{}' has {} bytes; the checkpoint goes on behind line end {}", path, content.size(), keep_bytes);
  }
  auto seen = ParseJournalHeader(content.substr(0, content.find('\n')));
  if (!seen.ok()) return Annotate(seen.status(), fmt::format("{}:1", path));
  TIDEPOOL_RETURN_IF_ERROR(CheckHeader(path, *seen, header));
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening the journal '{}'", path));
  if (::ftruncate(fd.get(), keep_bytes) != 0 || ::lseek(fd.get(), keep_bytes, SEEK_SET) < 0) {
    return ErrnoError(errno, fmt::format("cutting the journal '{}' to {} bytes", path, keep_bytes));
  }
  return std::unique_ptr<JournalWriter>(new JournalWriter(path, std::move(fd), keep_bytes));
}

Status JournalWriter::Write(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd_.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, fmt::format("writing the journal '{}'", path_));
    done += static_cast<size_t>(n);
  }
  size_bytes_ += static_cast<int64_t>(text.size());
  return {};
}

Status JournalWriter::Append(const JournalStep& step) { return Write(ToJson(step)); }

Status JournalWriter::Sync() {
  if (::fdatasync(fd_.get()) != 0) return ErrnoError(errno, fmt::format("syncing the journal '{}'", path_));
  return {};
}

StatusOr<std::unique_ptr<JournalReader>> JournalReader::Open(const std::string& path) {
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kLargestJournal));
  JournalHeader header;
  std::vector<JournalStep> steps;
  int64_t number = 0;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = content.find('\n', begin);
    // The writer was killed within this line: its step never ended.
    if (end == std::string::npos) break;
    const std::string line = content.substr(begin, end - begin);
    begin = end + 1;
    const std::string place = fmt::format("{}:{}", path, ++number);
    if (number == 1) {
      auto parsed = ParseJournalHeader(line);
      if (!parsed.ok()) return Annotate(parsed.status(), place);
      header = *parsed;
      continue;
    }
    auto parsed = ParseJournalStep(line);
    if (!parsed.ok()) return Annotate(parsed.status(), place);
    if (!steps.empty() && (parsed->step != steps.back().step + 1 || parsed->positions.begin != steps.back().positions.end)) {
      return InvalidArgument("{}: step {} over [{}, {}) does not follow step {}, which ends at {}", place, parsed->step,
                             parsed->positions.begin, parsed->positions.end, steps.back().step, steps.back().positions.end);
    }
    steps.push_back(std::move(*parsed));
  }
  if (number == 0) return InvalidArgument("the journal '{}' has no header line", path);
  return std::unique_ptr<JournalReader>(new JournalReader(path, std::move(header), std::move(steps)));
}

Status JournalReader::CheckFits(const JournalHeader& run) const { return CheckHeader(path_, header_, run); }

StatusOr<const JournalStep*> JournalReader::Step(int64_t step) const {
  if (steps_.empty() || step < first_step() || step > last_step()) {
    return NotFound("the journal '{}' holds steps {} to {}; step {} is not among them", path_, first_step(), last_step(), step);
  }
  return &steps_[step - first_step()];
}

}  // namespace tidepool::train
