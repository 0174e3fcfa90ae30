// A line on the terminal that the next one replaces.
#pragma once

#include <cstdio>
#include <string>

namespace tidepool::cli {

// Shows nothing if `shown` is false (no terminal). Its line is gone when it is. Thread-compatible.
class StatusLine {
 public:
  explicit StatusLine(bool shown) : shown_(shown) {}
  ~StatusLine() {
    if (open_) std::fputs("\r\033[K", stderr);
  }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  void Show(const std::string& text) {
    if (!shown_) return;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
    open_ = true;
  }

 private:
  const bool shown_;
  bool open_ = false;
};

}  // namespace tidepool::cli
