#include "cli/doctor.h"

#include <limits>

#include "base/json.h"
#include "base/text.h"
#include "base/units.h"

namespace tidepool::cli {
namespace {

Finding Ok(std::string name, std::string seen) {
  return {.name = std::move(name), .level = FindingLevel::kOk, .seen = std::move(seen)};
}

std::string_view LevelName(FindingLevel level) {
  return level == FindingLevel::kOk ? "ok" : level == FindingLevel::kWarn ? "warn" : "bad";
}

std::string BytesOrUnlimited(int64_t bytes) {
  if (bytes < 0) return "unknown";
  return bytes == std::numeric_limits<int64_t>::max() ? "unlimited" : FormatBytes(bytes);
}

Finding Blas(const MachineFacts& facts) {
  const std::string& library = facts.blas_library;
  if (library.find("openblas") != std::string::npos || library.find("mkl") != std::string::npos) return Ok("blas", library);
  if (library.empty()) {
    return {.name = "blas",
            .level = FindingLevel::kWarn,
            .seen = "no alternatives link for libblas.so.3",
            .why = "which BLAS the worker will load cannot be told; the reference BLAS makes matrix products many times slower",
            .mend = "apt-get install libopenblas0-pthread"};
  }
  return {.name = "blas",
          .level = FindingLevel::kBad,
          .seen = library,
          .why = "this is not an optimised BLAS: matrix products are many times slower than with OpenBLAS",
          .mend = "apt-get install libopenblas0-pthread  # or: update-alternatives --config libblas.so.3-x86_64-linux-gnu"};
}

Finding Cores(const MachineFacts& facts) {
  std::string seen = fmt::format("{} usable", facts.cores);
  if (facts.cgroup_cpus > 0) seen += fmt::format(", control group allows {:.2g}", facts.cgroup_cpus);
  if (facts.cores < 2) {
    return {.name = "cores",
            .level = FindingLevel::kWarn,
            .seen = seen,
            .why = "serving, training and the load generator share one core; latencies will be long",
            .mend = "give the machine or the container at least 2 cores"};
  }
  if (facts.cgroup_cpus > 0 && facts.cgroup_cpus < facts.cores) {
    return {.name = "cores",
            .level = FindingLevel::kWarn,
            .seen = seen,
            .why = "threads are made for each visible core, but the control group stops them all when its share is used up",
            .mend = fmt::format("raise the CPU limit of the container to {}, or start it with --cpuset-cpus", facts.cores)};
  }
  return Ok("cores", seen);
}

Finding Threads(const MachineFacts& facts) {
  std::string seen;
  for (const auto& [name, value] : facts.thread_variables) seen += fmt::format("{}{}={}", seen.empty() ? "" : " ", name, value);
  if (seen.empty()) return Ok("threads", "no thread variables are set; the worker chooses");
  const auto openmp = facts.thread_variables.find("OMP_NUM_THREADS");
  if (openmp != facts.thread_variables.end() && std::atoi(openmp->second.c_str()) > facts.cores) {
    return {.name = "threads",
            .level = FindingLevel::kWarn,
            .seen = seen,
            .why = fmt::format("more threads than the {} usable cores wait for each other at every operator", facts.cores),
            .mend = "unset OMP_NUM_THREADS"};
  }
  const auto policy = facts.thread_variables.find("OMP_WAIT_POLICY");
  if (policy != facts.thread_variables.end() && (policy->second == "active" || policy->second == "ACTIVE")) {
    return {.name = "threads",
            .level = FindingLevel::kWarn,
            .seen = seen,
            .why = "threads that spin while they wait take the cores from the other process",
            .mend = "export OMP_WAIT_POLICY=passive"};
  }
  return Ok("threads", seen);
}

Finding Load(const MachineFacts& facts) {
  const std::string seen =
      facts.load_average < 0 ? "unknown" : fmt::format("{:.2f} on {} cores", facts.load_average, facts.cores);
  if (facts.load_average <= 0.5 * facts.cores) return Ok("load", seen);
  return {.name = "load",
          .level = FindingLevel::kWarn,
          .seen = seen,
          .why = "other processes compete for the cores; measured latencies will include them",
          .mend = "wait until the machine is quiet, or look at: ps aux --sort=-%cpu | head"};
}

Finding Memory(const MachineFacts& facts) {
  std::string seen = fmt::format("{} of {} available", BytesOrUnlimited(facts.memory_available_bytes),
                                 BytesOrUnlimited(facts.memory_total_bytes));
  int64_t usable = facts.memory_available_bytes;
  if (facts.cgroup_memory_bytes >= 0) {
    seen += fmt::format(", control group allows {}", FormatBytes(facts.cgroup_memory_bytes));
    usable = std::min(usable, facts.cgroup_memory_bytes);
  }
  if (usable < 0 || usable >= 4 * kGiB) return Ok("memory", seen);
  return {
      .name = "memory",
      .level = usable < 2 * kGiB ? FindingLevel::kBad : FindingLevel::kWarn,
      .seen = seen,
      .why = "the device's memory is taken whole at start, beside the workers' own; with less than 4 GiB the kernel may kill one",
      .mend = "end other programs, raise the container's memory limit, or give the node a smaller device"};
}

Finding LockedMemory(const MachineFacts& facts) {
  const std::string seen = BytesOrUnlimited(facts.memlock_bytes);
  if (facts.memlock_bytes < 0 || facts.memlock_bytes >= kGiB) return Ok("locked-memory", seen);
  return {.name = "locked-memory",
          .level = FindingLevel::kWarn,
          .seen = seen,
          .why = "device memory cannot be locked, so under memory pressure the kernel may page it out",
          .mend = "ulimit -l unlimited  # or LimitMEMLOCK=infinity in the systemd unit"};
}

Finding MemoryFiles(const MachineFacts& facts) {
  if (!facts.memfd) {
    return {.name = "memory-files",
            .level = FindingLevel::kBad,
            .seen = facts.memfd_error,
            .why = "device memory is an anonymous memory file that processes share",
            .mend = "run on Linux 3.17 or later, and allow memfd_create in the sandbox's filter"};
  }
  const std::string seen = fmt::format("memfd works, /dev/shm has {} free", BytesOrUnlimited(facts.shm_free_bytes));
  if (facts.overcommit == 2) {
    return {.name = "memory-files",
            .level = FindingLevel::kWarn,
            .seen = seen + ", overcommit is off",
            .why = "with strict accounting a large device may be refused although memory is free",
            .mend = "sysctl vm.overcommit_memory=0"};
  }
  return Ok("memory-files", seen);
}

Finding HugePages(const MachineFacts& facts) {
  if (facts.huge_pages.empty()) return Ok("huge-pages", "not offered by this kernel");
  const std::string seen =
      fmt::format("{}, memory files {}", facts.huge_pages, facts.shmem_huge_pages.empty() ? "unknown" : facts.shmem_huge_pages);
  if (facts.huge_pages != "always") return Ok("huge-pages", seen);
  return {.name = "huge-pages",
          .level = FindingLevel::kWarn,
          .seen = seen,
          .why = "the kernel may stop a process while it collects huge pages, which shows as rare long latencies",
          .mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"};
}

Finding IdleClass(const MachineFacts& facts) {
  if (facts.idle_class_left) return Ok("idle-class", "can be entered and left");
  if (facts.idle_class_entered) {
    return {.name = "idle-class",
            .level = FindingLevel::kWarn,
            .seen = "can be entered but not left",
            .why = "training yields the CPU by the idle scheduling class; it will keep that class even when serving is quiet",
            .mend = "ulimit -e 20  # needs a hard limit of 20; or run with CAP_SYS_NICE"};
  }
  return {.name = "idle-class",
          .level = FindingLevel::kWarn,
          .seen = "cannot be entered",
          .why = "training cannot yield the CPU to serving, so latencies rise while both run",
          .mend = "allow sched_setscheduler in the sandbox's filter"};
}

Finding Descriptors(const MachineFacts& facts) {
  const std::string seen =
      facts.open_files == std::numeric_limits<int64_t>::max() ? "unlimited" : fmt::format("{}", facts.open_files);
  if (facts.open_files < 0 || facts.open_files >= 1024) return Ok("open-files", seen);
  return {.name = "open-files",
          .level = FindingLevel::kWarn,
          .seen = seen,
          .why = "each connection takes a descriptor; clients are refused when none is left",
          .mend = "ulimit -n 4096"};
}

Finding Kernel(const MachineFacts& facts) {
  if (facts.pidfd) return Ok("kernel", facts.kernel + ", pidfd works");
  return {.name = "kernel",
          .level = FindingLevel::kBad,
          .seen = fmt::format("{}: {}", facts.kernel, facts.pidfd_error),
          .why = "the death of a process is seen through its pidfd",
          .mend = "run on Linux 5.3 or later, and allow pidfd_open in the sandbox's filter"};
}

Finding ClockSource(const MachineFacts& facts) {
  const std::string& source = facts.clock_source;
  if (source != "hpet" && source != "acpi_pm" && source != "jiffies" && source != "refined-jiffies") {
    return Ok("clock", source.empty() ? "unknown" : source);
  }
  return {.name = "clock",
          .level = FindingLevel::kWarn,
          .seen = source,
          .why = "each reading of the time is a slow device access",
          .mend = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource  # if it is offered"};
}

Finding Gpu(const MachineFacts& facts) {
  if (facts.gpu_devices.empty()) return Ok("gpu", "no NVIDIA device; the host device is used");
  return Ok("gpu", fmt::format("{} NVIDIA device(s), not used: this release has the host device only{}{}",
                               facts.gpu_devices.size(), facts.gpu_driver.empty() ? "" : "; ", facts.gpu_driver));
}

Finding Worker(const MachineFacts& facts) {
  if (facts.worker_binary) return Ok("worker", "tidepool-worker is beside this binary");
  return {.name = "worker",
          .level = FindingLevel::kBad,
          .seen = "tidepool-worker is not beside this binary",
          .why = "models and training run in it",
          .mend = "./dev build, or install both binaries into one folder"};
}

}  // namespace

std::vector<Finding> Diagnose(const MachineFacts& facts) {
  return {Blas(facts),         Cores(facts),       Threads(facts),   Load(facts),      Memory(facts),
          LockedMemory(facts), MemoryFiles(facts), HugePages(facts), IdleClass(facts), Descriptors(facts),
          Kernel(facts),       ClockSource(facts), Gpu(facts),       Worker(facts)};
}

std::string FindingsText(const std::vector<Finding>& findings, bool color) {
  std::string text;
  int hurting = 0;
  for (const Finding& finding : findings) {
    const char* paint = finding.level == FindingLevel::kOk     ? "\033[32m"
                        : finding.level == FindingLevel::kWarn ? "\033[33m"
                                                               : "\033[31m";
    text += fmt::format("{}{:<5}{} {:<14} {}\n", color ? paint : "", LevelName(finding.level), color ? "\033[0m" : "",
                        finding.name, finding.seen);
    if (finding.level == FindingLevel::kOk) continue;
    ++hurting;
    text += fmt::format("      {:<14} why:  {}\n      {:<14} mend: {}\n", "", finding.why, "", finding.mend);
  }
  return text + (hurting == 0 ? "Nothing here will hurt.\n" : fmt::format("{} of {} will hurt.\n", hurting, findings.size()));
}

std::string FindingsJson(const MachineFacts& facts, const std::vector<Finding>& findings) {
  nlohmann::ordered_json json;
  FindingLevel worst = FindingLevel::kOk;
  json["findings"] = nlohmann::ordered_json::array();
  for (const Finding& finding : findings) {
    worst = std::max(worst, finding.level);
    json["findings"].push_back({{"name", finding.name},
                                {"level", std::string(LevelName(finding.level))},
                                {"seen", finding.seen},
                                {"why", finding.why},
                                {"mend", finding.mend}});
  }
  json["worst"] = std::string(LevelName(worst));
  json["machine"] = {{"kernel", facts.kernel},
                     {"cores", facts.cores},
                     {"blas_library", facts.blas_library},
                     {"memory_total_bytes", facts.memory_total_bytes},
                     {"memory_available_bytes", facts.memory_available_bytes},
                     {"load_average", facts.load_average},
                     {"gpu_devices", facts.gpu_devices}};
  json["version"] = TIDEPOOL_VERSION;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace tidepool::cli
