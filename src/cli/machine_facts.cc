// Reads what the findings are made of from /proc, /sys, limits and small trials that leave nothing behind.
#include <fcntl.h>
#include <glob.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <optional>
#include <thread>

#include "base/fd.h"
#include "base/process.h"
#include "base/text.h"
#include "base/units.h"
#include "cli/doctor.h"

namespace tidepool::cli {
namespace {

std::string ReadLine(const std::string& path) {
  const auto text = ReadFile(path, kMiB);
  return text.ok() ? std::string(TrimText(text->substr(0, text->find('\n')))) : std::string();
}

std::optional<double> Number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

std::vector<std::string> Glob(const std::string& pattern) {
  glob_t found;
  std::vector<std::string> paths;
  if (::glob(pattern.c_str(), 0, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) paths.emplace_back(found.gl_pathv[i]);
  }
  ::globfree(&found);
  return paths;
}

// "always [madvise] never" -> "madvise".
std::string Chosen(const std::string& text) {
  const size_t open = text.find('['), close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return {};
  return text.substr(open + 1, close - open - 1);
}

int64_t Limit(int resource) {
  rlimit limit;
  if (::getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0) return -1;
  return limit.rlim_cur == RLIM_INFINITY ? std::numeric_limits<int64_t>::max() : static_cast<int64_t>(limit.rlim_cur);
}

void ReadMemory(MachineFacts* facts) {
  const auto text = ReadFile("/proc/meminfo", kMiB);
  if (!text.ok()) return;
  for (const std::string& line : SplitText(*text, '\n')) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const auto value = Number(TrimText(std::string_view(line).substr(colon + 1)));
    if (!value) continue;
    if (line.starts_with("MemTotal:")) facts->memory_total_bytes = static_cast<int64_t>(*value) * kKiB;
    if (line.starts_with("MemAvailable:")) facts->memory_available_bytes = static_cast<int64_t>(*value) * kKiB;
  }
}

// The directories of this process's control group from its own up to the root, for one controller ("" is version 2).
std::vector<std::string> GroupDirectories(const std::string& controller) {
  const auto text = ReadFile("/proc/self/cgroup", kMiB);
  std::vector<std::string> directories;
  if (!text.ok()) return directories;
  for (const std::string& line : SplitText(*text, '\n')) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::vector<std::string> names = SplitText(line.substr(first + 1, second - first - 1), ',');
    const bool wanted = controller.empty() ? names.empty() : std::find(names.begin(), names.end(), controller) != names.end();
    if (!wanted) continue;
    const std::string root = controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
    std::string path = line.substr(second + 1);
    while (path.size() > 1) {
      directories.push_back(root + path);
      path = path.substr(0, path.rfind('/'));
    }
    directories.push_back(root);
  }
  return directories;
}

// A limit of any group above us holds for us too, so the smallest one counts.
void ReadGroupLimits(MachineFacts* facts) {
  auto memory = [&](const std::string& path) {
    const auto bytes = Number(ReadLine(path));
    // Version 1 writes "no limit" as a huge number.
    if (!bytes || *bytes > 0x1p60) return;
    const int64_t limit = static_cast<int64_t>(*bytes);
    if (facts->cgroup_memory_bytes < 0 || limit < facts->cgroup_memory_bytes) facts->cgroup_memory_bytes = limit;
  };
  auto cpus = [&](std::optional<double> quota, std::optional<double> period) {
    if (!quota || !period || *quota <= 0 || *period <= 0) return;
    if (facts->cgroup_cpus < 0 || *quota / *period < facts->cgroup_cpus) facts->cgroup_cpus = *quota / *period;
  };
  for (const std::string& directory : GroupDirectories("")) {
    memory(directory + "/memory.max");
    const std::vector<std::string> parts = SplitText(ReadLine(directory + "/cpu.max"), ' ');
    if (parts.size() == 2) cpus(Number(parts[0]), Number(parts[1]));
  }
  for (const std::string& directory : GroupDirectories("memory")) memory(directory + "/memory.limit_in_bytes");
  for (const std::string& directory : GroupDirectories("cpu")) {
    cpus(Number(ReadLine(directory + "/cpu.cfs_quota_us")), Number(ReadLine(directory + "/cpu.cfs_period_us")));
  }
}

// On a thread of its own: one that entered the class and cannot leave it just ends.
void TryIdleClass(MachineFacts* facts) {
  std::thread([facts] {
    const sched_param none{};
    facts->idle_class_entered = ::sched_setscheduler(0, SCHED_IDLE, &none) == 0;
    facts->idle_class_left = facts->idle_class_entered && ::sched_setscheduler(0, SCHED_OTHER, &none) == 0;
  }).join();
}

void TryKernelFeatures(MachineFacts* facts) {
  if (const auto fd = CreateMemFd("tidepool-doctor", kMiB); fd.ok()) {
    facts->memfd = true;
  } else {
    facts->memfd_error = ToString(fd.status());
  }
  if (const auto fd = OpenPidFd(::getpid()); fd.ok()) {
    facts->pidfd = true;
  } else {
    facts->pidfd_error = ToString(fd.status());
  }
}

}  // namespace

MachineFacts CollectFacts() {
  MachineFacts facts;
  utsname name;
  if (::uname(&name) == 0) facts.kernel = name.release;
  for (const std::string& link : Glob("/etc/alternatives/libblas.so.3-*")) {
    std::error_code error;
    facts.blas_library = std::filesystem::canonical(link, error).string();
  }
  cpu_set_t set;
  facts.cores =
      ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(std::thread::hardware_concurrency());
  for (const char* variable :
       {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}) {
    if (const char* value = std::getenv(variable)) facts.thread_variables[variable] = value;
  }
  facts.load_average = Number(ReadLine("/proc/loadavg")).value_or(-1);
  ReadMemory(&facts);
  ReadGroupLimits(&facts);
  facts.memlock_bytes = Limit(RLIMIT_MEMLOCK);
  facts.open_files = Limit(RLIMIT_NOFILE);
  struct statvfs shm;
  if (::statvfs("/dev/shm", &shm) == 0)
    facts.shm_free_bytes = static_cast<int64_t>(shm.f_bavail) * static_cast<int64_t>(shm.f_frsize);
  TryKernelFeatures(&facts);
  facts.overcommit = static_cast<int>(Number(ReadLine("/proc/sys/vm/overcommit_memory")).value_or(-1));
  facts.huge_pages = Chosen(ReadLine("/sys/kernel/mm/transparent_hugepage/enabled"));
  facts.shmem_huge_pages = Chosen(ReadLine("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  facts.clock_source = ReadLine("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  TryIdleClass(&facts);
  facts.gpu_devices = Glob("/dev/nvidia[0-9]*");
  facts.gpu_driver = ReadLine("/proc/driver/nvidia/version");
  facts.worker_binary = ::access((ExecutableDirectory() + "/tidepool-worker").c_str(), X_OK) == 0;
  return facts;
}

}  // namespace tidepool::cli
