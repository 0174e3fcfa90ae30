// The disk's part of `tidepool bench loader`: one packed file of incompressible records, read by us and by others.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/process.h"
#include "cli/loader_bench.h"
#include "data/augment.h"
#include "data/buffer_pool.h"
#include "data/containers.h"
#include "data/order.h"
#include "data/packed.h"

namespace tidepool::cli {
namespace {

constexpr int64_t kRecordBytes = 114'660;  // the mean of ImageNet's files
constexpr int64_t kBlock = 4 * kMiB;       // of plain reads, and our groups
constexpr int64_t kAhead = 512;            // records announced before they are read

double WallSeconds() { return 1e-9 * static_cast<double>(MonotonicNanos()); }

// What is not in the page cache is read from the disk. Only a hint, but a clean file that nobody has mapped goes.
Status DropFromPageCache(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", path));
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
  return {};
}

Status WriteRecords(const std::string& path, int64_t file_bytes) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto writer, data::PackWriter::Create(path, {.group_bytes = kBlock, .classes = 1}));
  std::vector<uint64_t> record(kRecordBytes / 8 + 1);
  for (int64_t i = 0; i < file_bytes / kRecordBytes; ++i) {
    for (size_t w = 0; w < record.size(); ++w) record[w] = data::RandomBits(1, static_cast<uint64_t>(i), w);
    TIDEPOOL_RETURN_IF_ERROR(writer->Add(std::as_bytes(std::span(record)).first(kRecordBytes), 0, ""));
  }
  return writer->Finish();
}

// The whole file with one call of pread after the other.
StatusOr<double> PlainRead(const std::string& path, bool direct) {
  TIDEPOOL_RETURN_IF_ERROR(DropFromPageCache(path));
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0)));
  if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'{}", path, direct ? " with O_DIRECT" : ""));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto buffer, data::BufferPool::Create(0)->Get(kBlock));
  std::memset(buffer.get(), 1, kBlock);
  const double start = WallSeconds();
  int64_t total = 0;
  while (true) {
    const ssize_t got = ::pread(fd.get(), buffer.get(), kBlock, total);
    if (got < 0) return ErrnoError(errno, fmt::format("reading '{}'", path));
    total += got;
    if (got < kBlock) break;
  }
  return static_cast<double>(total) / (WallSeconds() - start);
}

enum class Order : uint8_t { kFile, kGroups, kRecords };

// Every record of the file, checked against its checksum: in the order of the file, groups in a random order, or every record
// anywhere, which takes a disk read for each.
StatusOr<double> PackedRead(const std::string& path, Order how, const data::DiskOptions& disk) {
  TIDEPOOL_ASSIGN_OR_RETURN(const auto source, data::OpenPacked(path, {.disk = disk}));
  std::vector<int64_t> order(static_cast<size_t>(source->size()));
  std::iota(order.begin(), order.end(), 0);
  if (how == Order::kRecords) order = data::EpochOrder(source->size(), /*seed=*/1, /*epoch=*/0);
  if (how == Order::kGroups) {
    std::vector<int64_t> groups;
    for (int64_t i = 0; i < source->size(); i = source->Group(i).end) groups.push_back(i);
    groups.push_back(source->size());
    order = data::GroupedEpochOrder(groups, /*window=*/4, /*seed=*/1, /*epoch=*/0);
  }
  TIDEPOOL_RETURN_IF_ERROR(DropFromPageCache(path));
  const double start = WallSeconds();
  int64_t total = 0, announced = 0;
  for (int64_t i = 0; i < source->size(); ++i) {
    for (; how != Order::kRecords && announced < std::min(i + kAhead, source->size()); ++announced)
      source->WillNeed(order[announced]);
    TIDEPOOL_ASSIGN_OR_RETURN(const data::RecordView view, source->Read(order[i]));
    total += view.size_bytes();
  }
  return static_cast<double>(total) / (WallSeconds() - start);
}

StatusOr<double> FioRead(const std::string& path) {
  TIDEPOOL_RETURN_IF_ERROR(DropFromPageCache(path));
  TIDEPOOL_ASSIGN_OR_RETURN(auto child, ChildProcess::Start({.command = {"fio", "--name=read", "--filename=" + path, "--rw=read",
                                                                         "--bs=4M", "--ioengine=io_uring", "--iodepth=8",
                                                                         "--direct=1", "--readonly", "--output-format=json"},
                                                             .capture_stdout = true}));
  std::string output;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(child.stdout_fd(), buffer, sizeof(buffer))) > 0;)
    output.append(buffer, static_cast<size_t>(got));
  TIDEPOOL_ASSIGN_OR_RETURN(const ExitStatus exit, child.Wait(Clock::Real()->Now() + absl::Seconds(60)));
  const auto parsed =
      nlohmann::json::parse(output.substr(std::min(output.find('{'), output.size())), nullptr, /*allow_exceptions=*/false);
  if (!exit.ok() || !parsed.is_object() || !parsed.contains("jobs") || parsed["jobs"].empty()) {
    return Unavailable("fio {}", exit.Describe());
  }
  return parsed["jobs"][0]["read"].value("bw_bytes", 0.0);
}

}  // namespace

StatusOr<DiskBenchResult> RunDiskBench(const std::string& directory, int64_t file_bytes, int64_t rounds,
                                       const std::function<void(const std::string&)>& note,
                                       const std::function<bool()>& stopped) {
  const std::string path = directory + "/disk.tpk";
  note(fmt::format("writing {} to '{}'", FormatBytes(file_bytes), directory));
  TIDEPOOL_RETURN_IF_ERROR(WriteRecords(path, file_bytes));
  using Method = data::DiskOptions::Method;
  const std::vector<std::pair<std::string, std::function<StatusOr<double>()>>> ways = {
      {"plain, O_DIRECT", [&] { return PlainRead(path, true); }},
      {"plain, page cache", [&] { return PlainRead(path, false); }},
      {"fio", [&] { return FioRead(path); }},
      {"packed, in order", [&] { return PackedRead(path, Order::kFile, {.direct = true}); }},
      {"packed, shuffled groups", [&] { return PackedRead(path, Order::kGroups, {.direct = true}); }},
      {"packed, shuffled records", [&] { return PackedRead(path, Order::kRecords, {.direct = true}); }},
      {"packed, in order, page cache", [&] { return PackedRead(path, Order::kFile, {}); }},
      {"packed, in order, pread", [&] { return PackedRead(path, Order::kFile, {.method = Method::kPread}); }},
  };
  DiskBenchResult result;
  std::vector<std::vector<double>> rates(ways.size());
  for (int64_t round = 0; round < rounds; ++round) {
    note(fmt::format("reading from the disk, round {} of {}", round + 1, rounds));
    for (size_t i = 0; i < ways.size(); ++i) {
      if (stopped()) return Cancelled("the benchmark was stopped");
      const StatusOr<double> rate = ways[i].second();
      if (rate.ok()) {
        rates[i].push_back(*rate);
      } else if (ways[i].first == "fio") {
        result.fio_absent = MessageOf(rate.status());
      } else if (ways[i].first != "plain, O_DIRECT") {
        return rate.status();
      }
    }
  }
  for (size_t i = 0; i < ways.size(); ++i) {
    if (rates[i].empty()) continue;
    std::sort(rates[i].begin(), rates[i].end());
    result.rates.push_back({.what = ways[i].first, .bytes_per_s = rates[i][rates[i].size() / 2]});
  }
  return result;
}

}  // namespace tidepool::cli
