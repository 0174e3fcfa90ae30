// JPEG decoding and augmentation on one core, beside PIL and torchvision on the same files in the same run (jpeg_pipeline.py, if
// Debian's python3-torchvision is there). Times are CPU time of one thread.
#include <benchmark/benchmark.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>

#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "cli/loader_bench.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "data/jpeg.h"

namespace tidepool::data {
namespace {

constexpr int kQuality = 85, kFiles = 32;
constexpr const char* kPeerSeconds = "1.5";

// An ImageFolder of one class, removed at the end of the program.
struct Files {
  std::filesystem::path root = std::filesystem::temp_directory_path() / fmt::format("tidepool-data-bench-{}", ::getpid());
  std::vector<std::string> content;
  int64_t bytes = 0;
  Files() {
    std::filesystem::create_directories(root / "class");
    for (int i = 0; i < kFiles; ++i) {
      content.push_back(cli::BenchPicture(static_cast<uint64_t>(i), kQuality));
      bytes += static_cast<int64_t>(content.back().size());
      const Status written = WriteFileAtomically((root / "class" / fmt::format("{:03}.jpg", i)).string(), content.back());
      TIDEPOOL_CHECK(written.ok(), "{}", ToString(written));
    }
  }
  ~Files() { std::filesystem::remove_all(root); }
};

Files& TheFiles() {
  static Files files;
  return files;
}

void SetRates(benchmark::State& state) {
  state.counters["images_per_s"] = benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["file_bytes"] = static_cast<double>(TheFiles().bytes / kFiles);
}

void Decode(benchmark::State& state) {
  Image image;
  size_t i = 0;
  for (auto _ : state) {
    const std::span<const std::byte> jpeg = std::as_bytes(std::span(TheFiles().content[i++ % kFiles]));
    const JpegInfo info = *ReadJpegInfo(jpeg);
    TIDEPOOL_CHECK(DecodeJpeg(jpeg, info, static_cast<int>(state.range(0)), &image).ok(), "decoding");
    benchmark::DoNotOptimize(image.rgbx.data());
  }
  SetRates(state);
}
BENCHMARK(Decode)->ArgName("reduction")->Arg(1)->Arg(2)->Arg(4);

// The whole way of a sample: file, decoder, crop, flip, normalised floats.
void DecodeAndAugment(benchmark::State& state) {
  const int size = static_cast<int>(state.range(0));
  const auto dataset = OpenImageFolder({.root = TheFiles().root.string(), .image_size = size});
  TIDEPOOL_CHECK(dataset.ok(), "{}", ToString(dataset.status()));
  std::vector<std::byte> input((*dataset)->input().size_bytes()), target(8);
  int64_t i = 0;
  for (auto _ : state) {
    const Status read = (*dataset)->Read(i % kFiles, {.augment_key = static_cast<uint64_t>(i / kFiles)}, input, target);
    TIDEPOOL_CHECK(read.ok(), "{}", ToString(read));
    benchmark::DoNotOptimize(input.data());
    ++i;
  }
  SetRates(state);
}
BENCHMARK(DecodeAndAugment)->ArgName("size")->Arg(64)->Arg(224);

// The loader with one thread: batches of 32, in memory that is too large for the caches. An iteration is one sample; the CPU time
// is that of all threads.
void Load(benchmark::State& state) {
  const auto dataset = OpenImageFolder({.root = TheFiles().root.string(), .image_size = static_cast<int>(state.range(0))});
  TIDEPOOL_CHECK(dataset.ok(), "{}", ToString(dataset.status()));
  const auto loader = BatchLoader::Start(dataset->get(), {.threads = 1, .batch = 32, .max_bytes = 80 << 20});
  TIDEPOOL_CHECK(loader.ok(), "{}", ToString(loader.status()));
  const absl::Time deadline = Clock::Real()->Now() + absl::Minutes(10);
  for (int i = 0; i < 8; ++i) TIDEPOOL_CHECK((*loader)->Next(deadline).ok(), "warming up");
  while (state.KeepRunningBatch(32)) {
    const auto batch = (*loader)->Next(deadline);
    TIDEPOOL_CHECK(batch.ok() && batch->has_value(), "{}", ToString(batch.status()));
    benchmark::DoNotOptimize((*batch)->inputs().data());
  }
  SetRates(state);
}
BENCHMARK(Load)->ArgName("size")->Arg(224)->MeasureProcessCPUTime();

void Peer(benchmark::State& state, const char* step) {
  static std::map<int64_t, nlohmann::json> measured;
  nlohmann::json& result = measured[state.range(0)];
  if (result.is_null()) {
    const std::string command =
        fmt::format("/usr/bin/python3 {}/bench/jpeg_pipeline.py {} {} {} 2>/dev/null", TIDEPOOL_SOURCE_DIR,
                    (TheFiles().root / "class").string(), state.range(0), kPeerSeconds);
    std::string output;
    if (std::FILE* pipe = ::popen(command.c_str(), "r")) {
      char buffer[512];
      while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
      ::pclose(pipe);
    }
    result = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  }
  if (!result.is_object()) {
    state.SkipWithError("needs /usr/bin/python3 with torchvision and PIL (apt-get install python3-torchvision python3-pil)");
    return;
  }
  for (auto _ : state) state.SetIterationTime(result[step]["us_per_image"].get<double>() * 1e-6);
  state.counters["images_per_s"] = result[step]["images_per_s"].get<double>();
  state.SetLabel(fmt::format("torchvision {}, pillow {}", result["versions"]["torchvision"].get<std::string>(),
                             result["versions"]["pillow"].get<std::string>()));
}
BENCHMARK_CAPTURE(Peer, pil_decode, "decode")->ArgName("size")->Arg(224)->UseManualTime()->Iterations(1);
BENCHMARK_CAPTURE(Peer, torchvision_augment, "augment")->ArgName("size")->Arg(64)->Arg(224)->UseManualTime()->Iterations(1);
BENCHMARK_CAPTURE(Peer, torchvision_augment_draft, "draft")->ArgName("size")->Arg(64)->Arg(224)->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace tidepool::data

BENCHMARK_MAIN();
