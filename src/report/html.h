// A report page: one HTML file without outside resources that opens from disk, in light and dark, on a screen or a phone.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidepool::report {

// &, <, >, " and ' become entities; bytes that are not UTF-8 become U+FFFD, control characters spaces.
std::string EscapeHtml(std::string_view text);

struct Cell {
  std::string text;
  bool number = false;  // right-aligned, in figures of equal width
  bool strong = false;  // the best of its row
  bool bad = false;     // a failure
};

struct Table {
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows;  // short rows are filled with empty cells
  std::string caption;
};

// A number with its name, shown large at the top of the page.
struct Figure {
  std::string value, label;
  std::string note;
  bool bad = false;
};

// Collects a page from top to bottom. Every argument called text, title, note or caption is escaped; `AddPlot` takes what plot.h
// returned. Thread-compatible.
class Page {
 public:
  Page(std::string title, std::string subtitle);
  void AddHeading(std::string_view title);
  void AddParagraph(std::string_view text);
  void AddFigures(const std::vector<Figure>& figures);
  void AddTable(const Table& table);
  // Plots added one after the other stand side by side where the page is wide enough, unless `wide`.
  void AddPlot(const std::string& plot, bool wide = false);
  // Text as it is, in a fixed font, folded away under `title`.
  void AddDetails(std::string_view title, std::string_view text);
  std::string Render() const;
  // Writes atomically.
  Status Write(const std::string& path) const;

 private:
  void CloseGrid();
  std::string title_, subtitle_, body_;
  bool grid_open_ = false;
};

}  // namespace tidepool::report
