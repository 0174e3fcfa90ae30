// Measured tables of others made into a bundle. The formats are those of the GPU emulator's published measurements
// (docs/profile.md lists their columns); each file is recognised by its first line.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "profile/bundle.h"

namespace tidepool::profile {

enum class ImportFormat : uint8_t {
  kBatchTable,   // header "gpu cudnn quality model batch ...": medians per batch
  kDeviceTable,  // no header, 12 fields: gpu, memory, model, batch, two empty ones, copy s, compute s, ...
  kIterations,   // header "cpu2gpu_time gpu_time": one line per iteration; model and batch stand in the file's name
  kPinTable,     // batch,seconds to pin it
  kMemoryTable,  // batch, MiB at the peak, another figure; the model is an option
};
std::string_view NameOf(ImportFormat format);

struct ImportOptions {
  std::string gpu;            // rows of this device, as the table writes it, letter case aside; empty: there must be only one
  std::string cudnn;          // "yes", "no": rows of this column; empty: there must be only one value
  std::string model;          // of a memory table, which does not name it
  bool keep_flagged = false;  // rows that the table itself marks as doubtful
};

struct ImportReport {
  int64_t rows = 0;                        // taken
  int64_t duplicates = 0;                  // of equal keys the row with more repeats was taken
  int64_t not_measured = 0;                // "N/A" and the like
  int64_t without_time = 0;                // memory of a batch that has no time
  std::map<std::string, int64_t> flagged;  // left out: the table's own reason, rows
};

// Thread-compatible.
class Importer {
 public:
  explicit Importer(ImportOptions options);
  ~Importer();

  // Takes the rows of one file. INVALID_ARGUMENT names file, line and column, or the devices to choose from. After an error the
  // importer is not to be used further.
  Status Add(const std::string& file, std::string_view text);
  // What was taken, sorted; the manifest is the caller's to fill. Times are of training steps in single precision. Memory comes
  // last: it belongs to the rows that are there.
  StatusOr<Bundle> Finish();
  const ImportReport& report() const { return report_; }

 private:
  struct Collected;
  Status AddBatchTable(const std::string& file, std::string_view text);
  Status AddDeviceTable(const std::string& file, std::string_view text);
  Status AddIterations(const std::string& file, std::string_view text);
  Status AddPinTable(const std::string& file, std::string_view text);
  Status AddMemoryTable(const std::string& file, std::string_view text);

  ImportOptions options_;
  ImportReport report_;
  std::unique_ptr<Collected> collected_;
};

}  // namespace tidepool::profile
