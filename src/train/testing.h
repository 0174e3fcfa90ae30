// What the tests of the trainer share: a small ImageFolder on disk, and options for a network that trains on it in moments.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "base/fd.h"
#include "data/jpeg.h"
#include "train/job.h"

namespace tidepool::train {

// A directory that is removed with the object.
class ScratchFolder {
 public:
  ScratchFolder() {
    static int count = 0;
    path_ = std::filesystem::path(::testing::TempDir()) / fmt::format("tidepool-train-{}-{}", ::getpid(), count++);
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

// Class c has stripes of its own direction and colour, shifted from picture to picture.
inline void WritePictures(const std::string& root, int classes, int per_class, int size = 40) {
  for (int c = 0; c < classes; ++c) {
    const std::string folder = fmt::format("{}/class{}", root, c);
    std::filesystem::create_directories(folder);
    for (int i = 0; i < per_class; ++i) {
      std::vector<uint8_t> rgb;
      for (int y = 0; y < size; ++y) {
        for (int x = 0; x < size; ++x) {
          const double wave = std::sin(0.5 * (c % 2 == 0 ? x : y) + 0.7 * i);
          for (int channel = 0; channel < 3; ++channel)
            rgb.push_back(static_cast<uint8_t>(128 + 60 * wave + (channel == c % 3 ? 50 : -20)));
        }
      }
      const auto jpeg = data::EncodeJpeg(rgb, size, size, 90);
      ASSERT_TRUE(jpeg.ok());
      ASSERT_TRUE(WriteFileAtomically(fmt::format("{}/{:04}.jpg", folder, i), *jpeg).ok());
    }
  }
}

inline TrainOptions TinyOptions(const std::string& data) {
  TrainOptions options;
  options.name = "test";
  options.model = "resnet18:image=32,small_stem=true,width=8,classes=4";
  options.data = "imagefolder:" + data;
  options.global_batch = 12;
  options.max_micro_batch = 12;
  options.epochs = 2;
  options.seed = 7;
  options.threads = 1;
  options.pool_bytes = 96 << 20;
  return options;
}

}  // namespace tidepool::train
