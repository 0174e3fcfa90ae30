// Plain text as bytes. A sample is a window of `context` tokens; its target is the same window one byte later. Windows do not
// overlap and do not cross files, so the number of samples of a file of n bytes is (n - 1) / context.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/fd.h"
#include "data/dataset.h"

namespace tidepool::data {
namespace {

namespace fs = std::filesystem;

class Text : public Dataset {
 public:
  struct File {
    std::string path;
    UniqueFd fd;
    int64_t first_sample;
  };

  Text(int64_t context, std::vector<File> files, int64_t samples)
      : context_(context), files_(std::move(files)), samples_(samples), spec_{DType::kI64, {context}} {}

  int64_t size() const override { return samples_; }
  const TensorSpec& input() const override { return spec_; }
  const TensorSpec& target() const override { return spec_; }
  int64_t classes() const override { return 256; }
  std::string Describe(int64_t index) const override {
    const File& file = FileOf(index);
    return fmt::format("{} at byte {}", file.path, (index - file.first_sample) * context_);
  }

  Status Read(int64_t index, const ReadOptions&, std::span<std::byte> input, std::span<std::byte> target) const override {
    if (index < 0 || index >= size()) return OutOfRange("sample {}; the data set has {}", index, size());
    if (static_cast<int64_t>(input.size()) != spec_.size_bytes() || target.size() != input.size()) {
      return InvalidArgument("buffers of {} and {} bytes for a sample; needed: {} each", input.size(), target.size(),
                             spec_.size_bytes());
    }
    const File& file = FileOf(index);
    thread_local std::vector<uint8_t> window;
    window.resize(context_ + 1);
    size_t got = 0;
    while (got < window.size()) {
      const ssize_t n = ::pread(file.fd.get(), window.data() + got, window.size() - got,
                                (index - file.first_sample) * context_ + static_cast<int64_t>(got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoError(errno, fmt::format("reading {}", Describe(index)));
      if (n == 0) return DataLoss("{}: the file has become shorter since it was opened", Describe(index));
      got += static_cast<size_t>(n);
    }
    int64_t* tokens = reinterpret_cast<int64_t*>(input.data());
    int64_t* next = reinterpret_cast<int64_t*>(target.data());
    for (int64_t i = 0; i < context_; ++i) {
      tokens[i] = window[i];
      next[i] = window[i + 1];
    }
    return {};
  }

 private:
  const File& FileOf(int64_t index) const {
    auto after = std::upper_bound(files_.begin(), files_.end(), index,
                                  [](int64_t wanted, const File& file) { return wanted < file.first_sample; });
    return *std::prev(after);
  }

  const int64_t context_;
  const std::vector<File> files_;
  const int64_t samples_;
  const TensorSpec spec_;
};

constexpr size_t kMostFiles = 512;  // each stays open

}  // namespace

StatusOr<std::unique_ptr<Dataset>> OpenText(const TextOptions& options) {
  if (options.context < 1 || options.context > (1 << 20)) {
    return InvalidArgument("context {}; allowed: 1 to {}", options.context, 1 << 20);
  }
  std::error_code error;
  std::vector<fs::path> paths;
  if (fs::is_directory(options.path, error)) {
    for (fs::directory_iterator entry(options.path, error), end; !error && entry != end; entry.increment(error)) {
      std::error_code ignored;
      if (entry->is_regular_file(ignored) && !entry->path().filename().string().starts_with('.')) paths.push_back(entry->path());
    }
    if (error) return ErrnoError(error.value(), fmt::format("reading the folder '{}'", options.path));
    std::sort(paths.begin(), paths.end());
  } else {
    paths.push_back(options.path);
  }
  if (paths.size() > kMostFiles) {
    return InvalidArgument("'{}' holds {} text files; allowed: up to {}", options.path, paths.size(), kMostFiles);
  }
  std::vector<Text::File> files;
  int64_t samples = 0;
  for (const fs::path& path : paths) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return ErrnoError(errno, fmt::format("opening '{}'", path.string()));
    struct stat info;
    if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, fmt::format("reading the size of '{}'", path.string()));
    const int64_t count = info.st_size > 0 ? (info.st_size - 1) / options.context : 0;
    if (count == 0) continue;
    files.push_back({path.string(), std::move(fd), samples});
    samples += count;
  }
  if (files.empty()) {
    return NotFound("'{}' holds no text of at least {} bytes, which one sample of context {} needs", options.path,
                    options.context + 1, options.context);
  }
  return std::make_unique<Text>(options.context, std::move(files), samples);
}

}  // namespace tidepool::data
