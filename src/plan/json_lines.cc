#include "plan/json_lines.h"

#include <algorithm>
#include <set>
#include <vector>

#include "base/json.h"

namespace tidepool::plan {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostLines = 200000;  // what comes later has the line of what is around it
constexpr size_t kLongestKey = 80;     // of a path; messages show no more

// Stops where the text is no longer JSON.
class SyntaxScanner : public nlohmann::json_sax<Json> {
 public:
  explicit SyntaxScanner(int max_depth) : max_depth_(max_depth) {}
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool key(string_t&) override { return true; }
  bool start_object(size_t) override { return ++depth_ <= max_depth_; }
  bool start_array(size_t) override { return ++depth_ <= max_depth_; }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    position_ = position;
    return false;
  }
  bool too_deep() const { return depth_ > max_depth_; }
  size_t position() const { return position_; }

 private:
  const int max_depth_;
  int depth_ = 0;
  size_t position_ = 0;
};

// Walks through a text that is known to be JSON.
class Walker {
 public:
  Walker(std::string_view text, std::unordered_map<std::string, int64_t>* lines) : text_(text), lines_(lines) {}

  // False: a key stands twice in one object; `path()` is its place.
  bool Value(const std::string& path) {
    Skip();
    if (lines_->size() < kMostLines) lines_->emplace(path, line_);
    if (at_ >= text_.size()) return true;
    if (text_[at_] == '{') return Object(path);
    if (text_[at_] == '[') return Array(path);
    if (text_[at_] == '"') {
      String();
      return true;
    }
    while (at_ < text_.size() && std::string_view(",]} \t\r\n").find(text_[at_]) == std::string_view::npos) ++at_;
    return true;
  }
  const std::string& repeated() const { return repeated_; }
  int64_t line() const { return line_; }

 private:
  void Skip() {
    for (; at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos; ++at_) {
      if (text_[at_] == '\n') ++line_;
    }
  }
  // Raw: escapes stay as they are, which is all that comparing and showing keys needs.
  std::string String() {
    const size_t from = ++at_;
    while (at_ < text_.size() && text_[at_] != '"') at_ += text_[at_] == '\\' ? 2 : 1;
    const std::string content(text_.substr(from, std::min(at_, text_.size()) - from));
    ++at_;
    return content;
  }
  bool Object(const std::string& path) {
    std::set<std::string> keys;
    ++at_;
    for (Skip(); at_ < text_.size() && text_[at_] != '}'; Skip()) {
      const std::string key = String();
      const std::string shown = key.substr(0, kLongestKey);
      const std::string inner = path.empty() ? shown : path + "." + shown;
      if (!keys.insert(key).second) {
        repeated_ = inner.substr(0, 120);
        return false;
      }
      Skip();
      ++at_;  // the colon
      if (!Value(inner)) return false;
      Skip();
      if (at_ < text_.size() && text_[at_] == ',') ++at_;
    }
    ++at_;
    return true;
  }
  bool Array(const std::string& path) {
    ++at_;
    size_t index = 0;
    for (Skip(); at_ < text_.size() && text_[at_] != ']'; Skip()) {
      if (!Value(path + "[" + std::to_string(index++) + "]")) return false;
      Skip();
      if (at_ < text_.size() && text_[at_] == ',') ++at_;
    }
    ++at_;
    return true;
  }

  std::string_view text_;
  std::unordered_map<std::string, int64_t>* lines_;
  size_t at_ = 0;
  int64_t line_ = 1;
  std::string repeated_;
};

}  // namespace

StatusOr<JsonLines> JsonLines::Scan(std::string_view text, const std::string& file, int max_depth) {
  SyntaxScanner scanner(max_depth);
  if (!Json::sax_parse(text, &scanner)) {
    if (scanner.too_deep()) return InvalidArgument("{}: nested deeper than {}", file, max_depth);
    const size_t end = std::min(scanner.position(), text.size());
    return InvalidArgument("{}:{}: this is not JSON", file,
                           1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // the parser skips a byte order mark
  JsonLines result;
  Walker walker(text, &result.lines_);
  if (!walker.Value("")) return InvalidArgument("{}:{}: key '{}' appears twice", file, walker.line(), walker.repeated());
  return result;
}

int64_t JsonLines::Of(std::string_view path) const {
  std::string at(path);
  while (true) {
    if (const auto found = lines_.find(at); found != lines_.end()) return found->second;
    if (at.empty()) return 1;
    const size_t last = at.find_last_of(".[");
    at.resize(last == std::string::npos ? 0 : last);
  }
}

}  // namespace tidepool::plan
