// The published experiments of the GPU emulator on data stalls (figures 3, 4a, 5 and 6), repeated in virtual time, or smaller on
// the real clock beside what virtual time predicts for the same smaller pipeline (real_time.h).
//
// What is emulated is its loader: workers of PyTorch that read and prepare whole batches, started anew each epoch; a thread that
// pins each batch for 40 ms and spins meanwhile with the interpreter's lock; a loop that copies and computes one after the other;
// steps of a profile scaled through the origin to the batch and divided by the devices; 87,473 pictures, a page cache.
//
// Where the published measurements are at hand, each figure takes from them the step times and, by solving for them in the
// simulation, the time to prepare a picture and the latency of a read, each from one row. That row is marked as calibrated; all
// others are predictions. Without them built-in bundles and constants serve, and nothing is compared.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "data/stalls/pipeline.h"

namespace tidepool::data::stalls {

struct FigureOptions {
  std::string reference;                         // folder "emulator" of the published measurements; empty: not there
  bool quick = false;                            // an eighth of the samples; nothing is compared
  bool real_time = false;                        // on the real clock, scaled down: a minute for each figure
  std::function<bool()> stopped;                 // CANCELLED
  std::function<void(const std::string&)> note;  // what is being measured; may be empty
};

struct FigureRow {
  std::string name;  // a model, or a setting
  double x = 0;
  double ours = 0;       // in virtual time, or measured on the real clock
  double predicted = 0;  // on the real clock: in virtual time, for the same smaller pipeline
  double published = 0;  // meaningful if `compared`
  bool compared = false;
  bool calibrated = false;  // the row that a parameter was taken from
  bool gated = false;       // the tolerance is asked of this row
};

struct FigureSeries {
  std::string name;
  std::vector<FigureRow> rows;
};

struct Figure {
  std::string title, x_label, y_label;
  bool share = false;     // values are shares of the time; otherwise seconds or samples/s
  bool absolute = false;  // the tolerance is a difference, not a ratio
  bool real_time = false;
  double tolerance = 0;
  std::vector<FigureSeries> series;
  std::vector<std::string> notes;
  int64_t events = 0;
  uint64_t hash = 0;

  // Difference of a row from what it is held beside, in the sense of the tolerance: what was published, or the prediction of
  // virtual time.
  double DifferenceOf(const FigureRow& row) const {
    const double other = real_time ? row.predicted : row.published;
    return absolute ? row.ours - other : row.ours / other - 1;
  }
  bool Within(const FigureRow& row) const {
    const double difference = DifferenceOf(row);
    return difference <= tolerance && difference >= -tolerance;
  }
};

StatusOr<Figure> Figure3(const FigureOptions& options);   // fetch stall of eight models
StatusOr<Figure> Figure4a(const FigureOptions& options);  // fetch stall over cache size
StatusOr<Figure> Figure5(const FigureOptions& options);   // speed over workers
StatusOr<Figure> Figure6(const FigureOptions& options);   // preparation stall of four models

}  // namespace tidepool::data::stalls
