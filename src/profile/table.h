// Reading of the TSV tables of a bundle (docs/profile.md): one header line with fixed column names, then one line per row.
//
// Every fault is kept with file, line and byte column, so that a damaged table is mended in one go. Internal to profile.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::profile {

// The first faults of a file, and how many there were. Thread-compatible.
class FaultList {
 public:
  static constexpr size_t kShown = 20;
  void Add(std::string fault) {
    if (faults_.size() < kShown) faults_.push_back(std::move(fault));
    ++count_;
  }
  void Add(const FaultList& other);
  bool empty() const { return count_ == 0; }
  size_t count() const { return count_; }
  // INVALID_ARGUMENT with one fault per line; OK if there is none.
  Status ToStatus() const;

 private:
  std::vector<std::string> faults_;
  size_t count_ = 0;
};

// Times in microseconds and sizes in bytes lie between these: sums and squares of them stay finite.
inline constexpr double kSmallest = 1e-6;
inline constexpr double kLargest = 1e18;

// Reads the fields of a row from left to right; a field that is wrong is noted and read as a harmless value. Thread-compatible.
class TableReader {
 public:
  // `file` is for messages; `text` and `columns` outlive the reader.
  TableReader(std::string file, std::string_view text, std::span<const std::string_view> columns);

  // Goes to the next row. False at the end of the table, or if the header is not what it should be.
  bool NextRow();
  // Each reads the next field of the row. Call one per column, in order.
  std::string_view Text();
  int64_t Integer(int64_t min, int64_t max);
  double Number();          // zero, or from kSmallest to kLargest
  double PositiveNumber();  // from kSmallest to kLargest
  // Notes a fault of the field that was read last.
  void Fault(std::string_view problem);

  int64_t line() const { return line_; }
  // Whether the current row had no fault so far.
  bool row_ok() const { return faults_.count() == faults_before_row_; }
  FaultList& faults() { return faults_; }
  const std::string& file() const { return file_; }

 private:
  bool NextLine();
  void CheckHeader();
  double Decimal(bool zero_allowed);

  std::string file_;
  std::string_view text_;
  std::span<const std::string_view> columns_;
  size_t at_ = 0;           // of text_: behind the current line
  int64_t line_ = 0;        // from 1
  std::string_view row_;    // the current line
  size_t field_begin_ = 0;  // of row_: the field that was read last
  size_t next_begin_ = 0;   // of row_: the next field
  size_t field_ = 0;        // how many fields of the row were read
  std::string_view value_;
  bool header_ok_ = false;
  FaultList faults_;
  size_t faults_before_row_ = 0;
};

// `text` shortened and with unprintable bytes shown as '?', for messages.
std::string Shown(std::string_view text);

// Empty, or what is wrong with a text that a bundle shall hold: control characters cannot stand in a table, and a text longer
// than kMaxText has another purpose than to be a name.
inline constexpr size_t kMaxText = 4096;
std::string TextFault(std::string_view text);

}  // namespace tidepool::profile
