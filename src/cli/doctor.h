// What of a machine will hurt Tidepool. Facts are collected once, without linking torch; the findings are a pure function of
// them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace tidepool::cli {

// -1 or empty: not known on this machine.
struct MachineFacts {
  std::string kernel;                                   // "6.1.0-18-amd64"
  std::string blas_library;                             // what the alternatives link libblas.so.3 ends at
  int cores = 0;                                        // that this process may use
  int64_t cgroup_memory_bytes = -1;                     // limit; -1: none
  double cgroup_cpus = -1;                              // limit; -1: none
  std::map<std::string, std::string> thread_variables;  // OMP_NUM_THREADS, ... as far as they are set
  double load_average = -1;                             // over one minute
  int64_t memory_total_bytes = -1, memory_available_bytes = -1;
  int64_t memlock_bytes = -1;   // soft limit; INT64_MAX: unlimited
  int64_t open_files = -1;      // soft limit
  int64_t shm_free_bytes = -1;  // of /dev/shm
  bool memfd = false, pidfd = false;
  std::string memfd_error, pidfd_error;
  int overcommit = -1;           // /proc/sys/vm/overcommit_memory
  std::string huge_pages;        // "always", "madvise", "never"
  std::string shmem_huge_pages;  // the same for memory files
  std::string clock_source;
  bool idle_class_entered = false, idle_class_left = false;
  std::vector<std::string> gpu_devices;  // /dev/nvidia0, ...
  std::string gpu_driver;
  bool worker_binary = false;  // tidepool-worker lies beside this binary
};

MachineFacts CollectFacts();

enum class FindingLevel : uint8_t { kOk, kWarn, kBad };

struct Finding {
  std::string name;  // "blas"
  FindingLevel level = FindingLevel::kOk;
  std::string seen;
  std::string why;   // empty for ok
  std::string mend;  // a command, or what to do; empty for ok
};

std::vector<Finding> Diagnose(const MachineFacts& facts);

std::string FindingsText(const std::vector<Finding>& findings, bool color);
std::string FindingsJson(const MachineFacts& facts, const std::vector<Finding>& findings);

}  // namespace tidepool::cli
