#include "cli/loader_bench.h"

#include <sys/resource.h>
#include <turbojpeg.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <memory>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/process.h"
#include "cli/torch_loader_script.h"
#include "data/augment.h"
#include "data/batch_loader.h"
#include "data/containers.h"
#include "data/jpeg.h"

namespace tidepool::cli {
namespace {

namespace fs = std::filesystem;

double CpuSeconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double WallSeconds() { return 1e-9 * static_cast<double>(MonotonicNanos()); }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

// Values of one kind over the rounds.
struct Samples {
  std::vector<double> per_core_s, per_s;
};

struct Picture {
  std::string bytes;
  int width = 0, height = 0;
  std::span<const std::byte> span() const { return std::as_bytes(std::span(bytes)); }
};

class LoaderBench {
 public:
  LoaderBench(const LoaderBenchOptions& options, const std::function<void(const std::string&)>& note,
              const std::function<bool()>& stopped)
      : options_(options),
        note_(note),
        stopped_(stopped),
        threads_(options.threads > 0 ? static_cast<int>(options.threads)
                                     : std::max(1, static_cast<int>(std::thread::hardware_concurrency()))) {}
  ~LoaderBench() {
    std::error_code ignored;
    if (!made_.empty()) fs::remove_all(made_, ignored);
  }

  StatusOr<LoaderBenchResult> Run();

 private:
  Status PreparePictures();
  Status MeasurePictures(int threads);
  Status MeasureTorch();
  void Compare();

  // Runs `decode` for every picture in turn on `threads` threads.
  StatusOr<PictureRate> DecodeRate(int threads, const std::function<bool(const Picture&)>& decode) const;
  StatusOr<PictureRate> LoaderRate(int threads, data::DecodeMode mode);
  Status Check() const { return stopped_() ? Cancelled("the benchmark was stopped") : Status(); }
  double Rate(const std::vector<PictureRate>& rates, const std::string& what, int threads) const;

  const LoaderBenchOptions& options_;
  const std::function<void(const std::string&)>& note_;
  const std::function<bool()>& stopped_;
  const int threads_;
  std::string directory_, made_;  // `made_` is removed at the end
  std::string folder_;
  std::vector<Picture> pictures_;
  std::map<std::pair<std::string, int>, Samples> samples_;
  LoaderBenchResult result_;
};

Status LoaderBench::PreparePictures() {
  directory_ = options_.directory.empty() ? fs::temp_directory_path().string() : options_.directory;
  made_ = fmt::format("{}/tidepool-loader-bench-{}", directory_, ::getpid());
  std::error_code error;
  fs::create_directories(made_ + "/pictures/class", error);
  if (error) return ErrnoError(error.value(), fmt::format("making the folder '{}'", made_));
  folder_ = options_.data;
  if (folder_.empty()) {
    folder_ = made_ + "/pictures";
    note_(fmt::format("making {} pictures", options_.pictures));
    for (int64_t i = 0; i < options_.pictures; ++i) {
      TIDEPOOL_RETURN_IF_ERROR(Check());
      TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(fmt::format("{}/class/{:05}.jpg", folder_, i),
                                                   BenchPicture(static_cast<uint64_t>(i), static_cast<int>(options_.quality))));
    }
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const auto source, data::OpenImageFolderSource(folder_));
  int64_t bytes = 0;
  for (int64_t i = 0; i < source->size(); ++i) {
    TIDEPOOL_ASSIGN_OR_RETURN(const data::RecordView view, source->Read(i));
    const auto info = data::ReadJpegInfo(view.bytes());
    if (!info.ok()) return Annotate(info.status(), source->Describe(i));
    bytes += view.size_bytes();
    // More than this many only take memory.
    if (pictures_.size() >= 512) continue;
    pictures_.push_back({.bytes = {reinterpret_cast<const char*>(view.bytes().data()), view.bytes().size()},
                         .width = info->width,
                         .height = info->height});
  }
  result_.pictures = source->size();
  result_.mean_bytes = bytes / source->size();
  return {};
}

StatusOr<PictureRate> LoaderBench::DecodeRate(int threads, const std::function<bool(const Picture&)>& decode) const {
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> failed{false};
  const double cpu = CpuSeconds(), start = WallSeconds();
  const auto work = [&] {
    while (!failed && WallSeconds() - start < options_.seconds) {
      if (!decode(pictures_[static_cast<size_t>(next++) % pictures_.size()])) failed = true;
      ++done;
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  if (failed) return DataLoss("a picture of '{}' cannot be decoded", folder_);
  const auto count = static_cast<double>(done.load());
  return PictureRate{.threads = threads, .per_core_s = count / (CpuSeconds() - cpu), .per_s = count / (WallSeconds() - start)};
}

StatusOr<PictureRate> LoaderBench::LoaderRate(int threads, data::DecodeMode mode) {
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const data::RecordSource> container, data::OpenImageFolderSource(folder_));
  TIDEPOOL_ASSIGN_OR_RETURN(std::shared_ptr<const data::WrappedSource> source,
                            data::WrappedSource::Create(std::move(container), options_.wrap));
  TIDEPOOL_ASSIGN_OR_RETURN(const auto dataset, data::OpenImages(source, {.image_size = static_cast<int>(options_.image_size),
                                                                          .min_area = options_.min_area,
                                                                          .decode = mode}));
  const int64_t sample = dataset->input().size_bytes() + 8;
  TIDEPOOL_ASSIGN_OR_RETURN(const auto loader,
                            data::BatchLoader::Start(dataset.get(), {.threads = threads,
                                                                     .batch = options_.batch,
                                                                     .max_bytes = (2 + threads) * (options_.batch * sample + 64),
                                                                     .start = {.seed = 1}}));
  const auto next = [&]() -> StatusOr<int64_t> {
    TIDEPOOL_ASSIGN_OR_RETURN(const auto batch, loader->Next(Clock::Real()->Now() + absl::Seconds(60)));
    if (!batch.has_value()) return Internal("a loader without an end has ended");
    return batch->size();
  };
  // Until every buffer was used once: afterwards nothing is touched for the first time.
  for (int i = 0; i < 2 * (2 + threads); ++i) TIDEPOOL_RETURN_IF_ERROR(next().status());
  const double cpu = CpuSeconds(), start = WallSeconds();
  int64_t count = 0;
  while (WallSeconds() - start < options_.seconds) {
    TIDEPOOL_ASSIGN_OR_RETURN(const int64_t got, next());
    count += got;
  }
  if (source->cache() != nullptr) {
    const data::CacheStats stats = source->cache()->stats();
    result_.cache.hits += stats.hits;
    result_.cache.misses += stats.misses;
    result_.cache.joined += stats.joined;
    result_.cache.evicted += stats.evicted;
  }
  return PictureRate{.threads = threads,
                     .per_core_s = static_cast<double>(count) / (CpuSeconds() - cpu),
                     .per_s = static_cast<double>(count) / (WallSeconds() - start)};
}

// libjpeg-turbo's own interface, into memory that is used again, as its tjbench does.
bool TurboDecode(const Picture& picture) {
  struct Deleter {
    void operator()(void* handle) const { tjDestroy(handle); }
  };
  thread_local std::unique_ptr<void, Deleter> handle(tjInitDecompress());
  thread_local std::vector<unsigned char> pixels;
  pixels.resize(size_t{3} * picture.width * picture.height);
  return tjDecompress2(handle.get(), reinterpret_cast<const unsigned char*>(picture.bytes.data()), picture.bytes.size(),
                       pixels.data(), picture.width, 0, picture.height, TJPF_RGB, 0) == 0;
}

bool OurDecode(const Picture& picture) {
  thread_local data::Image image;
  const auto info = data::ReadJpegInfo(picture.span());
  return info.ok() && data::DecodeJpeg(picture.span(), *info, 1, &image).ok();
}

Status LoaderBench::MeasurePictures(int threads) {
  const auto keep = [&](const std::string& what, const StatusOr<PictureRate>& rate) -> Status {
    TIDEPOOL_RETURN_IF_ERROR(rate.status());
    Samples& samples = samples_[{what, threads}];
    samples.per_core_s.push_back(rate->per_core_s);
    samples.per_s.push_back(rate->per_s);
    return Check();
  };
  TIDEPOOL_RETURN_IF_ERROR(keep("decode", DecodeRate(threads, OurDecode)));
  TIDEPOOL_RETURN_IF_ERROR(keep("libjpeg-turbo", DecodeRate(threads, TurboDecode)));
  TIDEPOOL_RETURN_IF_ERROR(keep("loader full-scale", LoaderRate(threads, data::DecodeMode::kFullScale)));
  return keep("loader crop", LoaderRate(threads, data::DecodeMode::kCrop));
}

Status LoaderBench::MeasureTorch() {
  if (options_.python.empty()) {
    result_.torch_absent = "not asked for";
    return {};
  }
  const std::string script = made_ + "/torch_loader.py";
  TIDEPOOL_RETURN_IF_ERROR(WriteFileAtomically(script, kTorchLoaderScript));
  // Longer windows than ours: it comes with fewer of them.
  ProcessOptions process = {
      .command = {options_.python, script, folder_, fmt::format("{}", options_.image_size), fmt::format("{}", options_.min_area),
                  fmt::format("{}", options_.batch), fmt::format("{}", 2 * options_.seconds), "0", fmt::format("{}", threads_)},
      .capture_stdout = true};
  auto child = ChildProcess::Start(process);
  if (!child.ok()) {
    result_.torch_absent = MessageOf(child.status());
    return {};
  }
  std::string output;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(child->stdout_fd(), buffer, sizeof(buffer))) > 0;)
    output.append(buffer, static_cast<size_t>(got));
  TIDEPOOL_ASSIGN_OR_RETURN(const ExitStatus exit, child->Wait(Clock::Real()->Now() + absl::Seconds(60)));
  const auto parsed = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  if (!exit.ok() || !parsed.is_object() || !parsed.contains("runs")) {
    result_.torch_absent = fmt::format("{} with torch and torchvision {} (apt-get install python3-torch python3-torchvision)",
                                       options_.python, exit.Describe());
    return {};
  }
  result_.torch_versions = fmt::format("torch {}, torchvision {}, pillow {}", parsed.value("torch", ""),
                                       parsed.value("torchvision", ""), parsed.value("pillow", ""));
  for (const auto& run : parsed["runs"]) {
    result_.torch.push_back({.what = run.value("pipeline", ""),
                             .threads = run.value("workers", 0),
                             .per_core_s = run.value("images_per_core_s", 0.0),
                             .per_s = run.value("images_per_s", 0.0)});
  }
  return {};
}

double LoaderBench::Rate(const std::vector<PictureRate>& rates, const std::string& what, int threads) const {
  for (const PictureRate& rate : rates) {
    if (rate.what == what && rate.threads == threads) return rate.per_core_s;
  }
  return 0;
}

// Each ratio at the same number of threads or workers; the smaller one counts. One thread of ours is compared with PyTorch's
// best.
void LoaderBench::Compare() {
  const auto worst = [&](const std::string& what, const std::function<double(int)>& peer) {
    double least = 0;
    for (const int threads : {1, threads_}) {
      const double other = peer(threads);
      const double ratio = other > 0 ? Rate(result_.ours, what, threads) / other : 0;
      if (ratio > 0 && (least == 0 || ratio < least)) least = ratio;
    }
    return least;
  };
  // Within a round they run one right after the other: the ratio of each round, then the median.
  for (const std::string what : {"decode", "loader full-scale", "loader crop"}) {
    double least = 0;
    for (const int threads : {1, threads_}) {
      const std::vector<double>& own = samples_[{what, threads}].per_core_s;
      const std::vector<double>& peer = samples_[{"libjpeg-turbo", threads}].per_core_s;
      std::vector<double> ratios;
      for (size_t i = 0; i < own.size(); ++i) ratios.push_back(own[i] / peer[i]);
      least = least == 0 ? Median(ratios) : std::min(least, Median(ratios));
    }
    result_.ratios[what + " / libjpeg-turbo"] = least;
  }
  for (const std::string pipeline : {"pil", "tensor", "tensor-no-antialias"}) {
    const auto torch = [&](int threads) {
      return threads == 1 && threads_ > 1 ? Rate(result_.torch, pipeline, 0)
                                          : std::max(Rate(result_.torch, pipeline, threads), Rate(result_.torch, pipeline, 0));
    };
    if (result_.torch.empty()) continue;
    result_.ratios["loader crop / torch " + pipeline] = worst("loader crop", torch);
    result_.ratios["loader full-scale / torch " + pipeline] = worst("loader full-scale", torch);
  }
  const auto disk = [this](const std::string& what) {
    for (const DiskRate& rate : result_.disk) {
      if (rate.what == what) return rate.bytes_per_s;
    }
    return 0.0;
  };
  const auto set = [this](const std::string& what, double ours, double other) {
    if (other > 0) result_.ratios[what] = ours / other;
  };
  // Past the page cache and through it are two disks; a row for each, and one beside whichever is faster.
  const double direct = disk("plain, O_DIRECT"), buffered = disk("plain, page cache"), ours = disk("packed, in order");
  set("packed, in order / fio", ours, disk("fio"));
  set("packed, in order / plain read", ours, std::max(direct, buffered));
  set("packed, in order / plain read, O_DIRECT", ours, direct);
  set("packed, in order, page cache / plain read, page cache", disk("packed, in order, page cache"), buffered);
}

StatusOr<LoaderBenchResult> LoaderBench::Run() {
  result_.cores = static_cast<int>(std::thread::hardware_concurrency());
  TIDEPOOL_RETURN_IF_ERROR(PreparePictures());
  for (int64_t round = 0; round < options_.rounds; ++round) {
    note_(fmt::format("decoding and loading, round {} of {}", round + 1, options_.rounds));
    TIDEPOOL_RETURN_IF_ERROR(MeasurePictures(1));
    if (threads_ > 1) TIDEPOOL_RETURN_IF_ERROR(MeasurePictures(threads_));
    // In the middle, so that a machine that changes its speed changes it for both.
    if (round == options_.rounds / 2) {
      note_("PyTorch's DataLoader");
      TIDEPOOL_RETURN_IF_ERROR(MeasureTorch());
    }
  }
  for (const auto& [key, samples] : samples_) {
    result_.ours.push_back(
        {.what = key.first, .threads = key.second, .per_core_s = Median(samples.per_core_s), .per_s = Median(samples.per_s)});
  }
  if (options_.disk_bytes > 0) {
    TIDEPOOL_ASSIGN_OR_RETURN(DiskBenchResult disk, RunDiskBench(made_, options_.disk_bytes, options_.rounds, note_, stopped_));
    result_.disk = std::move(disk.rates);
    result_.fio_absent = std::move(disk.fio_absent);
  }
  Compare();
  return std::move(result_);
}

// Noise that is smooth between the points of a grid of `cell` pixels.
double SmoothNoise(uint64_t seed, int octave, double x, double y, double cell) {
  const double u = x / cell, v = y / cell;
  const double fx = std::floor(u), fy = std::floor(v);
  const auto corner = [&](double cx, double cy) {
    return data::RandomUnit(seed, static_cast<uint64_t>(cy) * 4096 + static_cast<uint64_t>(cx), static_cast<uint64_t>(octave)) -
           0.5;
  };
  const double a = u - fx, b = v - fy;
  const double top = corner(fx, fy) * (1 - a) + corner(fx + 1, fy) * a;
  const double bottom = corner(fx, fy + 1) * (1 - a) + corner(fx + 1, fy + 1) * a;
  return top * (1 - b) + bottom * b;
}

}  // namespace

Status LoaderBenchOptions::Validate() const {
  std::vector<std::string> faults;
  const auto require = [&](bool condition, std::string text) {
    if (!condition) faults.push_back(std::move(text));
  };
  require(pictures >= 1 && pictures <= 100000, fmt::format("{} pictures; allowed: 1 to 100000", pictures));
  require(quality >= 1 && quality <= 100, fmt::format("JPEG quality {}; allowed: 1 to 100", quality));
  require(image_size >= 1 && image_size <= 4096, fmt::format("image_size {}; allowed: 1 to 4096", image_size));
  require(min_area > 0 && min_area <= 1, fmt::format("min_area {}; allowed: above 0, at most 1", min_area));
  require(batch >= 1 && batch <= 4096, fmt::format("batches of {}; allowed: 1 to 4096", batch));
  require(threads >= 0 && threads <= 256, fmt::format("{} threads; allowed: 0 (the cores) to 256", threads));
  require(seconds > 0 && seconds <= 600, fmt::format("measurements of {} s; allowed: above 0, at most 600", seconds));
  require(rounds >= 1 && rounds <= 100, fmt::format("{} rounds; allowed: 1 to 100", rounds));
  require(disk_bytes == 0 || disk_bytes >= 16 * kMiB,
          fmt::format("a file of {} bytes to read; allowed: 0, or 16 MiB and above", disk_bytes));
  if (const Status status = wrap.Validate(); !status.ok()) faults.push_back(MessageOf(status));
  if (!faults.empty()) return InvalidArgument("{}", fmt::join(faults, "; "));
  return {};
}

StatusOr<LoaderBenchResult> RunLoaderBench(const LoaderBenchOptions& options, const std::function<void(const std::string&)>& note,
                                           const std::function<bool()>& stopped) {
  TIDEPOOL_RETURN_IF_ERROR(options.Validate());
  return LoaderBench(options, note, stopped).Run();
}

std::string BenchPicture(uint64_t seed, int quality) {
  const bool upright = data::RandomUnit(seed, 0, 1) < 0.25;
  int width = 500, height = 333 + static_cast<int>(data::RandomBits(seed, 0, 2) % 56);
  if (upright) std::swap(width, height);
  // Each octave has half the wavelength and somewhat over half the height of the one before: the spectrum of photographs.
  struct Octave {
    double cell, height;
  };
  std::vector<Octave> octaves;
  const double roughness = 0.72 + 0.12 * data::RandomUnit(seed, 0, 3);
  double amplitude = 100;
  for (double cell = 160; cell > 1.5; cell /= 2, amplitude *= roughness) octaves.push_back({cell, amplitude});
  const double edge_x = width * data::RandomUnit(seed, 0, 4), edge_y = height * data::RandomUnit(seed, 0, 5);
  const double radius = 60 + 120 * data::RandomUnit(seed, 0, 6);
  const double grain = 30 + 150 * data::RandomUnit(seed, 0, 7);  // of the sensor, and of leaves, hair and gravel
  std::vector<uint8_t> rgb;
  rgb.reserve(size_t{3} * width * height);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      double light = 128, tint = 0;
      for (size_t o = 0; o < octaves.size(); ++o)
        light += octaves[o].height * SmoothNoise(seed, static_cast<int>(o), x, y, octaves[o].cell);
      for (size_t o = 0; o < 3; ++o)
        tint += octaves[o].height * SmoothNoise(seed, 100 + static_cast<int>(o), x, y, octaves[o].cell);
      light += grain * (data::RandomUnit(seed, static_cast<uint64_t>(y) * 4096 + static_cast<uint64_t>(x), 200) - 0.5);
      if (std::hypot(x - edge_x, y - edge_y) < radius) light = 255 - light;
      for (const double share : {0.5, 0.0, -0.5})
        rgb.push_back(static_cast<uint8_t>(std::clamp(light + share * tint, 0.0, 255.0)));
    }
  }
  return data::EncodeJpeg(rgb, width, height, quality).value();
}

}  // namespace tidepool::cli
