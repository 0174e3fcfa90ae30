#include "cli/profile_measure.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "base/clock.h"
#include "base/json.h"
#include "base/process.h"
#include "base/text.h"

namespace tidepool::cli {
namespace {

using Json = nlohmann::json;

constexpr int kOptionsDescriptor = 3;
constexpr size_t kLongestLine = 1 << 20;
constexpr int64_t kMaxBatch = 1 << 20;
constexpr int kFewestRepeats = 10;  // profile::Check refuses fewer
constexpr int kPollMs = 200;
constexpr absl::Duration kEndGrace = absl::Seconds(10);

int64_t BatchOf(const std::string& text) {
  int64_t batch = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), batch);
  return error == std::errc() && end == text.data() + text.size() && batch >= 1 && batch <= kMaxBatch ? batch : 0;
}

// Takes the last line's error, if the line is one; passes texts on.
Status TakeLine(const std::string& line, const std::function<void(const std::string&)>& on_text) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  const auto text_of = [&](const char* key) {
    return json.is_object() && json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : std::string();
  };
  if (const std::string text = text_of("text"); !text.empty()) {
    on_text(text);
    return {};
  }
  const std::string name = text_of("code");
  for (int code = 1; code <= 16; ++code) {
    if (CodeName(static_cast<StatusCode>(code)) == name) return Status(static_cast<StatusCode>(code), text_of("message"));
  }
  return Internal("the measuring process wrote what is no progress: '{}'", line.substr(0, 100));
}

}  // namespace

void MeasureOptions::Register(OptionTable* table) {
  table->Add({.key = "measure.device", .help = "Device to measure: host", .metavar = "NAME"}, &device);
  table->Add({.key = "measure.models",
              .flag = "model",
              .help = "Networks to measure, as specs; may be given more than once",
              .metavar = "SPEC"},
             &models);
  table->Add({.key = "measure.batches",
              .flag = "batch",
              .help = "Batches to measure; where time climbs in stairs, as on GPUs, both sides of an edge: 32,33,64,65",
              .metavar = "N,..."},
             &batches);
  table->Add(
      {.key = "measure.phases", .flag = "phase", .help = "forward, step (with backward and optimizer)", .metavar = "PHASE,..."},
      &phases);
  table->Add({.key = "measure.ops", .help = "Time the forward pass op by op as well"}, &ops);
  table->Add({.key = "measure.repeats", .help = "Runs of each row after the first one"}, &repeats);
  table->Add({.key = "measure.memory", .help = "Memory of the device"}, BytesField{&memory_bytes});
  table->Add({.key = "measure.threads", .help = "Threads of the arithmetic; 0: all cores"}, &threads);
  table->Add({.key = "measure.time_limit", .help = "Batches that would take longer in all are left out"}, &time_limit);
}

Status MeasureOptions::Validate() const {
  std::vector<std::string> faults;
  if (models.empty()) faults.push_back("--model: name at least one network, for example resnet18");
  if (batches.empty()) faults.push_back("--batch: name at least one batch");
  for (const std::string& batch : batches) {
    if (BatchOf(batch) == 0) faults.push_back(fmt::format("--batch: '{}' is no batch; allowed: 1 to {}", batch, kMaxBatch));
  }
  if (phases.empty()) faults.push_back("--phase: name at least one of forward, step");
  for (const std::string& phase : phases) {
    if (phase != "forward" && phase != "step")
      faults.push_back(fmt::format("--phase: '{}' is not measured; allowed: forward, step", phase));
  }
  if (repeats < kFewestRepeats || repeats > 10000)
    faults.push_back(fmt::format("--repeats: {}; allowed: {} to 10000", repeats, kFewestRepeats));
  if (memory_bytes < 64 * kMiB) faults.push_back(fmt::format("--memory: {}; allowed: 64 MiB or more", FormatBytes(memory_bytes)));
  if (threads < 0 || threads > 4096) faults.push_back(fmt::format("--threads: {}; allowed: 0 to 4096", threads));
  if (time_limit < absl::Seconds(1)) faults.push_back("--time-limit: allowed: 1s or more");
  if (faults.empty()) return {};
  return InvalidArgument("{}", JoinText(faults, "\n"));
}

std::vector<std::string> MeasureOptions::Models() const {
  std::vector<std::string> specs;
  for (const std::string& part : models) {
    // A spec has its first '=' behind a ':', a further option of the one before has not.
    if (!specs.empty() && part.find('=') < part.find(':')) {
      specs.back() += "," + part;
    } else {
      specs.push_back(part);
    }
  }
  return specs;
}

std::vector<int64_t> MeasureOptions::Batches() const {
  std::vector<int64_t> values;
  for (const std::string& batch : batches) values.push_back(BatchOf(batch));
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

std::string ToJson(const MeasureOptions& options) {
  MeasureOptions copy = options;
  OptionTable table;
  copy.Register(&table);
  Json object = Json::object();
  for (const OptionTable::Entry& entry : table.entries()) {
    if (entry.info.key != "measure.models") object[entry.info.key] = entry.get();
  }
  object["measure.models"] = options.Models();
  object["output"] = options.output;
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

StatusOr<MeasureOptions> ParseMeasureOptions(const std::string& text) {
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return InvalidArgument("measuring options are no JSON object");
  MeasureOptions options;
  OptionTable table;
  options.Register(&table);
  for (const auto& [key, value] : object.items()) {
    if (key == "measure.models" && value.is_array()) {
      options.models.clear();
      for (const Json& model : value) {
        if (!model.is_string()) return InvalidArgument("option '{}' holds {}; allowed: strings", key, model.dump());
        options.models.push_back(model.get<std::string>());
      }
      continue;
    }
    if (!value.is_string()) return InvalidArgument("option '{}' is {}; allowed: a string", key, value.dump());
    if (key == "output") {
      options.output = value.get<std::string>();
      continue;
    }
    TIDEPOOL_RETURN_IF_ERROR(table.Set(key, value.get<std::string>(), OptionTable::Source::kFlag, "--options-fd"));
  }
  return options;
}

std::string ProgressLine(const std::string& text) {
  return Json{{"text", text}}.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string FailureLine(const Status& status) {
  return Json{{"code", CodeName(status.code())}, {"message", MessageOf(status)}}.dump(-1, ' ', false,
                                                                                      Json::error_handler_t::replace) +
         "\n";
}

Status RunMeasurement(const MeasureOptions& options, const std::string& worker_binary,
                      const std::function<void(const std::string&)>& on_text, const std::function<bool()>& stopped) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  const std::string text = ToJson(options);
  TIDEPOOL_ASSIGN_OR_RETURN(const UniqueFd memory, CreateMemFd("measure-options", static_cast<int64_t>(text.size())));
  if (::pwrite(memory.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    return ErrnoError(errno, "writing the measuring options");
  auto started = ChildProcess::Start({.command = {worker_binary, "profile", fmt::format("--options-fd={}", kOptionsDescriptor)},
                                      // As serving and training run.
                                      .environment = {{"OMP_WAIT_POLICY", "passive"}, {"GOMP_SPINCOUNT", "0"}},
                                      .descriptors = {{memory.get(), kOptionsDescriptor}},
                                      .capture_stdout = true});
  if (!started.ok()) return Annotate(started.status(), "measuring process");

  Status failure;
  std::string pending;
  char buffer[16 * 1024];
  while (true) {
    if (stopped()) return Cancelled("measuring was interrupted; nothing was written");
    pollfd entry = {started->stdout_fd(), POLLIN, 0};
    if (::poll(&entry, 1, kPollMs) < 0 && errno != EINTR) return ErrnoError(errno, "waiting for the measuring process");
    if (entry.revents == 0) continue;
    const ssize_t n = ::read(started->stdout_fd(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    pending.append(buffer, static_cast<size_t>(n));
    for (size_t end = pending.find('\n'); end != std::string::npos; end = pending.find('\n')) {
      const Status line = TakeLine(pending.substr(0, end), on_text);
      if (!line.ok()) failure = line;
      pending.erase(0, end + 1);
    }
    if (pending.size() > kLongestLine) return Internal("the measuring process wrote a line of more than {} bytes", kLongestLine);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const ExitStatus exit, started->Wait(Clock::Real()->Now() + kEndGrace));
  if (!failure.ok()) return failure;
  if (exit.signalled) return Aborted("the measuring process {}", exit.Describe());
  if (!exit.ok()) return Internal("the measuring process {}; the reason is in its log", exit.Describe());
  return {};
}

}  // namespace tidepool::cli
