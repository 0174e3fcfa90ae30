// Measures the input pipeline beside its peers, on the same pictures in the same run: libjpeg-turbo's decoder alone, PyTorch's
// DataLoader with torchvision (a subprocess of the system's python3), a plain sequential read and fio. Peers that are not
// installed are reported as absent.
//
// "Per core" is per second of CPU time of all threads and processes that take part, so that machines and numbers of threads
// compare.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/units.h"
#include "data/cache.h"
#include "data/wrapped_source.h"

namespace tidepool::cli {

struct LoaderBenchOptions {
  std::string data;        // an image folder; empty: pictures are made in `directory`
  int64_t pictures = 128;  // to make, of about 500 x 375
  int64_t quality = 85;
  int64_t image_size = 224;
  double min_area = 0.08;  // of the random resized crop; torchvision's default
  int64_t batch = 32;
  int64_t threads = 0;              // of the runs with many; 0: as many as cores
  double seconds = 0.7;             // of one measurement
  int64_t rounds = 3;               // the median counts
  std::string directory;            // for pictures and the file that is read; empty: the system's place for temporary files
  int64_t disk_bytes = 512 * kMiB;  // of the file that is read; 0: do not measure the disk
  data::WrapOptions wrap;           // what stands between the pictures and our loader
  std::string python = "/usr/bin/python3";  // empty: do not measure PyTorch
  Status Validate() const;
};

struct PictureRate {
  std::string what;       // "libjpeg-turbo", "decode", "loader crop", "loader full", "loader full-scale"
  int threads = 1;        // or worker processes; 0: in the main process
  double per_core_s = 0;  // pictures per second of CPU time
  double per_s = 0;       // of wall time
};

struct DiskRate {
  std::string what;
  double bytes_per_s = 0;
};

struct LoaderBenchResult {
  int64_t pictures = 0, mean_bytes = 0;
  int cores = 0;
  std::vector<PictureRate> ours;
  std::vector<PictureRate> torch;  // empty: absent
  std::string torch_versions, torch_absent;
  std::vector<DiskRate> disk;
  std::string fio_absent;
  data::CacheStats cache;  // of all runs of the loader together, if it had one
  std::map<std::string, double> ratios;
};

// `note` hears what is being measured. CANCELLED if `stopped` says so.
StatusOr<LoaderBenchResult> RunLoaderBench(const LoaderBenchOptions& options, const std::function<void(const std::string&)>& note,
                                           const std::function<bool()>& stopped);
std::string ToJson(const LoaderBenchOptions& options, const LoaderBenchResult& result);
std::string ToText(const LoaderBenchResult& result);

// A JPEG with detail at all scales, as a photograph has it: about 500 x 375 pixels, upright or not.
std::string BenchPicture(uint64_t seed, int quality);

// Reading `file_bytes` of packed records from `directory`, beside plain reads. Part of RunLoaderBench.
struct DiskBenchResult {
  std::vector<DiskRate> rates;
  std::string fio_absent;
};
StatusOr<DiskBenchResult> RunDiskBench(const std::string& directory, int64_t file_bytes, int64_t rounds,
                                       const std::function<void(const std::string&)>& note, const std::function<bool()>& stopped);

}  // namespace tidepool::cli
