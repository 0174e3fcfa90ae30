#include "base/log.h"

#include <absl/time/time.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "base/clock.h"
#include "base/text.h"

namespace tidepool {
namespace {

constexpr const char* kTextPattern = "%Y-%m-%dT%H:%M:%S.%eZ %l %v";

struct Logger {
  std::shared_ptr<spdlog::logger> sink;
  LogFormat format = LogFormat::kText;
  std::string process;
};

Logger& TheLogger() {
  static Logger* logger = [] {
    auto* made = new Logger;
    made->sink = std::make_shared<spdlog::logger>("tidepool", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->sink->set_pattern(kTextPattern, spdlog::pattern_time_type::utc);
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

bool NeedsQuotes(std::string_view text) {
  if (text.empty()) return true;
  for (const char c : text) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || static_cast<unsigned char>(c) >= 0x7f) return true;
  }
  return false;
}

}  // namespace

std::string_view Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return "debug";
    case LogLevel::kInfo: return "info";
    case LogLevel::kWarning: return "warning";
    case LogLevel::kError: return "error";
  }
  return "info";
}

StatusOr<LogLevel> ParseLogLevel(std::string_view text) {
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (text == Name(level)) return level;
  }
  return InvalidArgument("log level '{}' is unknown; allowed: debug, info, warning, error", text);
}

StatusOr<LogFormat> ParseLogFormat(std::string_view text) {
  if (text == "text") return LogFormat::kText;
  if (text == "json") return LogFormat::kJson;
  return InvalidArgument("log format '{}' is unknown; allowed: text, json", text);
}

Status InitLogging(const LogOptions& options) {
  Logger& logger = TheLogger();
  if (!options.file.empty()) {
    try {
      auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file, /*truncate=*/false);
      logger.sink = std::make_shared<spdlog::logger>("tidepool", std::move(file));
    } catch (const spdlog::spdlog_ex& error) {
      return InvalidArgument("log file '{}' cannot be opened: {}", options.file, error.what());
    }
  }
  logger.format = options.format;
  logger.process = options.process;
  logger.sink->set_level(SpdlogLevel(options.level));
  logger.sink->flush_on(spdlog::level::info);
  logger.sink->set_pattern(options.format == LogFormat::kJson ? "%v" : kTextPattern, spdlog::pattern_time_type::utc);
  return {};
}

bool LogEnabled(LogLevel level) { return TheLogger().sink->should_log(SpdlogLevel(level)); }

void Log(LogLevel level, std::string_view event, LogFields fields) {
  Logger& logger = TheLogger();
  if (!logger.sink->should_log(SpdlogLevel(level))) return;
  std::string line;
  if (logger.format == LogFormat::kJson) {
    const auto now = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", Clock::Real()->Now(), absl::UTCTimeZone());
    line = fmt::format(R"({{"time":"{}","level":"{}","event":{})", now, Name(level), JsonQuoted(event));
    if (!logger.process.empty()) line += fmt::format(R"(,"process":{})", JsonQuoted(logger.process));
    for (const auto& [key, value] : fields) {
      line += fmt::format(",{}:{}", JsonQuoted(key), value.is_text() ? JsonQuoted(value.text()) : value.text());
    }
    line += '}';
  } else {
    const bool one_line = event.find_first_of("\r\n") == std::string_view::npos;
    line = one_line ? std::string(event) : JsonQuoted(event);
    if (!logger.process.empty()) line = fmt::format("[{}] {}", logger.process, line);
    for (const auto& [key, value] : fields) {
      line += fmt::format(" {}={}", key, NeedsQuotes(value.text()) ? JsonQuoted(value.text()) : value.text());
    }
  }
  logger.sink->log(SpdlogLevel(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace tidepool
