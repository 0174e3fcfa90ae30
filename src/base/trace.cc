#include "base/trace.h"

#include <absl/synchronization/mutex.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>

#include "base/fd.h"
#include "base/text.h"

namespace tidepool {
namespace {

constexpr size_t kFlushBytes = 1 << 16;

std::string ArgsJson(const TraceArgs& args) {
  std::string text = "{";
  for (const auto& [key, value] : args) {
    if (text.size() > 1) text += ',';
    text += fmt::format("{}:{}", JsonQuoted(key), JsonQuoted(value));
  }
  return text + "}";
}

// The JSON array form of the format: viewers accept it without the closing bracket, so a killed process leaves a readable file.
// One event per line, each written whole.
class FileTraceWriter final : public TraceWriter {
 public:
  FileTraceWriter(UniqueFd fd, std::string path, absl::Time start) : fd_(std::move(fd)), path_(std::move(path)), start_(start) {}

  ~FileTraceWriter() override { (void)Finish(); }

  void NameProcess(int pid, std::string_view name) override {
    Append(fmt::format(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":{}}}}})", pid, JsonQuoted(name)));
  }

  void NameThread(int pid, int tid, std::string_view name) override {
    Append(
        fmt::format(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", pid, tid, JsonQuoted(name)));
  }

  void Complete(int pid, int tid, std::string_view name, absl::Time start, absl::Duration duration,
                const TraceArgs& args) override {
    Append(fmt::format(R"({{"ph":"X","name":{},"pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{}}})", JsonQuoted(name), pid,
                       tid, Micros(start), absl::ToDoubleMicroseconds(duration), ArgsJson(args)));
  }

  void Instant(int pid, int tid, std::string_view name, absl::Time at, const TraceArgs& args) override {
    Append(fmt::format(R"({{"ph":"i","s":"t","name":{},"pid":{},"tid":{},"ts":{:.3f},"args":{}}})", JsonQuoted(name), pid, tid,
                       Micros(at), ArgsJson(args)));
  }

  void Counter(int pid, std::string_view name, absl::Time at,
               const std::vector<std::pair<std::string, double>>& series) override {
    std::string values;
    for (const auto& [key, value] : series) {
      // JSON has no NaN or infinity.
      values += fmt::format("{}{}:{}", values.empty() ? "" : ",", JsonQuoted(key),
                            std::isfinite(value) ? fmt::format("{}", value) : "null");
    }
    Append(
        fmt::format(R"({{"ph":"C","name":{},"pid":{},"ts":{:.3f},"args":{{{}}}}})", JsonQuoted(name), pid, Micros(at), values));
  }

  void FlowStart(int pid, int tid, std::string_view name, absl::Time at, uint64_t id) override {
    Append(fmt::format(R"({{"ph":"s","cat":"flow","name":{},"pid":{},"tid":{},"ts":{:.3f},"id":{}}})", JsonQuoted(name), pid, tid,
                       Micros(at), id));
  }

  void FlowEnd(int pid, int tid, std::string_view name, absl::Time at, uint64_t id) override {
    Append(fmt::format(R"({{"ph":"f","bp":"e","cat":"flow","name":{},"pid":{},"tid":{},"ts":{:.3f},"id":{}}})", JsonQuoted(name),
                       pid, tid, Micros(at), id));
  }

  Status Finish() override {
    absl::MutexLock lock(&mu_);
    if (finished_) return error_;
    finished_ = true;
    buffer_ += any_ ? "\n]\n" : "[]\n";
    Flush();
    return error_;
  }

 private:
  double Micros(absl::Time at) const { return absl::ToDoubleMicroseconds(at - start_); }

  void Append(const std::string& event) {
    absl::MutexLock lock(&mu_);
    if (finished_ || !error_.ok()) return;
    buffer_ += any_ ? ",\n" : "[\n";
    any_ = true;
    buffer_ += event;
    if (buffer_.size() >= kFlushBytes) Flush();
  }

  void Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    size_t done = 0;
    while (error_.ok() && done < buffer_.size()) {
      const ssize_t put = ::write(fd_.get(), buffer_.data() + done, buffer_.size() - done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) {
        error_ = ErrnoError(errno, fmt::format("writing trace '{}'", path_));
      } else {
        done += static_cast<size_t>(put);
      }
    }
    buffer_.clear();
  }

  const UniqueFd fd_;
  const std::string path_;
  const absl::Time start_;
  absl::Mutex mu_;
  std::string buffer_ ABSL_GUARDED_BY(mu_);
  bool any_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  Status error_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

StatusOr<std::unique_ptr<TraceWriter>> TraceWriter::Open(const std::string& path, absl::Time start) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("creating trace '{}'", path));
  return std::make_unique<FileTraceWriter>(std::move(fd), path, start);
}

}  // namespace tidepool
