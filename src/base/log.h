// Logging: one event per line on stderr, `key=value` text or JSON. stdout is for data and is never written here.
//
//   Log(LogLevel::kInfo, "model loaded", {{"model", name}, {"bytes", FormatBytes(n)}});
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace tidepool {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
enum class LogFormat : uint8_t { kText, kJson };

std::string_view Name(LogLevel level);
StatusOr<LogLevel> ParseLogLevel(std::string_view text);    // debug, info, warning, error
StatusOr<LogFormat> ParseLogFormat(std::string_view text);  // text, json

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
  std::string file;     // empty: stderr
  std::string process;  // "node", "worker", "train": a field of every line
};
// Call once at start-up, before other threads log; before that, text lines of level info and above go to stderr. Times are UTC.
Status InitLogging(const LogOptions& options);
bool LogEnabled(LogLevel level);

// A value of a log field; quoted in text output where it needs to be.
class LogValue {
 public:
  LogValue(std::string_view text) : text_(text), is_text_(true) {}
  LogValue(const std::string& text) : text_(text), is_text_(true) {}
  LogValue(const char* text) : text_(text), is_text_(true) {}
  LogValue(bool value) : text_(value ? "true" : "false") {}
  LogValue(double value) : text_(fmt::format("{:.6g}", value)), is_text_(!std::isfinite(value)) {}
  template <typename T, typename = std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>>>
  LogValue(T value) : text_(fmt::format("{}", value)) {}
  LogValue(const Status& status) : text_(ToString(status)), is_text_(true) {}
  const std::string& text() const { return text_; }
  bool is_text() const { return is_text_; }

 private:
  std::string text_;
  bool is_text_ = false;
};

using LogFields = std::initializer_list<std::pair<std::string_view, LogValue>>;
// Thread-safe.
void Log(LogLevel level, std::string_view event, LogFields fields = {});

}  // namespace tidepool
