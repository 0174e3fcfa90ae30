#include "profile/table.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/text.h"

namespace tidepool::profile {

void FaultList::Add(const FaultList& other) {
  for (const std::string& fault : other.faults_) Add(fault);
  count_ += other.count_ - other.faults_.size();
}

Status FaultList::ToStatus() const {
  if (empty()) return {};
  std::string text = JoinText(faults_, "\n");
  if (count_ > faults_.size()) text += fmt::format("\nand {} more faults", count_ - faults_.size());
  return InvalidArgument("{}", text);
}

std::string Shown(std::string_view text) {
  constexpr size_t kLongest = 60;
  std::string shown(text.substr(0, kLongest));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() > kLongest) shown += "...";
  return shown;
}

std::string TextFault(std::string_view text) {
  if (text.size() > kMaxText) return fmt::format("has {} bytes; allowed: {}", text.size(), kMaxText);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) return fmt::format("holds the control character 0x{:02x}; allowed: printable text", byte);
  }
  return {};
}

TableReader::TableReader(std::string file, std::string_view text, std::span<const std::string_view> columns)
    : file_(std::move(file)), text_(text), columns_(columns) {
  CheckHeader();
}

bool TableReader::NextLine() {
  if (at_ >= text_.size()) return false;
  const size_t end = text_.find('\n', at_);
  row_ = text_.substr(at_, end == std::string_view::npos ? std::string_view::npos : end - at_);
  at_ = end == std::string_view::npos ? text_.size() : end + 1;
  ++line_;
  if (end == std::string_view::npos) {
    faults_.Add(
        fmt::format("{}:{}:{}: the last line does not end with a line feed: the file was cut", file_, line_, row_.size() + 1));
  }
  return true;
}

void TableReader::CheckHeader() {
  if (!NextLine()) {
    faults_.Add(fmt::format("{}:1:1: the file is empty; allowed: a line with the names of the columns", file_));
    return;
  }
  size_t begin = 0;
  for (size_t i = 0; i < columns_.size(); ++i) {
    const size_t end = std::min(row_.find('\t', begin), row_.size());
    const std::string_view name = begin <= row_.size() ? row_.substr(begin, end - begin) : std::string_view();
    if (begin > row_.size() || name != columns_[i]) {
      faults_.Add(fmt::format("{}:1:{}: column {} is '{}'; allowed: '{}'", file_, std::min(begin, row_.size()) + 1, i + 1,
                              Shown(name), columns_[i]));
      return;
    }
    begin = end + 1;
  }
  if (begin <= row_.size()) {
    faults_.Add(fmt::format("{}:1:{}: the unknown column '{}'; allowed: {} columns", file_, begin + 1,
                            Shown(row_.substr(begin, row_.find('\t', begin) - begin)), columns_.size()));
    return;
  }
  header_ok_ = true;
}

bool TableReader::NextRow() {
  if (!header_ok_) return false;
  faults_before_row_ = faults_.count();
  while (NextLine()) {
    const size_t fields = static_cast<size_t>(std::count(row_.begin(), row_.end(), '\t')) + 1;
    if (fields == columns_.size()) {
      field_begin_ = next_begin_ = field_ = 0;
      return true;
    }
    faults_.Add(fmt::format("{}:{}:1: the line has {} fields; allowed: {}", file_, line_, fields, columns_.size()));
    faults_before_row_ = faults_.count();
  }
  return false;
}

std::string_view TableReader::Text() {
  TIDEPOOL_CHECK(field_ < columns_.size(), "a row of {} has no field {}", file_, field_);
  field_begin_ = next_begin_;
  const size_t end = std::min(row_.find('\t', field_begin_), row_.size());
  value_ = row_.substr(field_begin_, end - field_begin_);
  next_begin_ = end + 1;
  ++field_;
  if (const std::string fault = TextFault(value_); !fault.empty()) Fault(fault);
  return value_;
}

int64_t TableReader::Integer(int64_t min, int64_t max) {
  const std::string_view text = Text();
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    Fault(fmt::format("is '{}'; allowed: an integer from {} to {}", Shown(text), min, max));
    return min;
  }
  return value;
}

double TableReader::Decimal(bool zero_allowed) {
  const std::string_view text = Text();
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool number = error == std::errc() && end == text.data() + text.size() && !std::signbit(value);
  if (!number || !((value == 0 && zero_allowed) || (value >= kSmallest && value <= kLargest))) {
    Fault(fmt::format("is '{}'; allowed: {}a decimal number from {} to {}", Shown(text), zero_allowed ? "0 or " : "", kSmallest,
                      kLargest));
    return zero_allowed ? 0 : 1;
  }
  return value;
}

double TableReader::Number() { return Decimal(true); }
double TableReader::PositiveNumber() { return Decimal(false); }

void TableReader::Fault(std::string_view problem) {
  faults_.Add(fmt::format("{}:{}:{}: {} {}", file_, line_, field_begin_ + 1, columns_[field_ - 1], problem));
}

}  // namespace tidepool::profile
