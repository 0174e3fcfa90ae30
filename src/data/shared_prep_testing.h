// For tests of shared preparation: a data set in memory whose samples tell by which index and which epoch they were made.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <string>

#include "data/augment.h"
#include "data/dataset.h"

namespace tidepool::data {

class NumberedDataset : public Dataset {
 public:
  explicit NumberedDataset(int64_t size) : size_(size) {}

  int64_t size() const override { return size_; }
  const TensorSpec& input() const override { return input_; }
  const TensorSpec& target() const override { return target_; }
  int64_t classes() const override { return 10; }
  Status Read(int64_t index, const ReadOptions& options, std::span<std::byte> input, std::span<std::byte> target) const override {
    reads_.fetch_add(1);
    if (on_read) TIDEPOOL_RETURN_IF_ERROR(on_read(index));
    for (size_t i = 0; i < input.size(); i += 8) {
      const uint64_t bits = RandomBits(options.augment_key, static_cast<uint64_t>(index), i);
      std::memcpy(input.data() + i, &bits, 8);
    }
    const int64_t label = index % 10;
    std::memcpy(target.data(), &label, 8);
    return {};
  }
  std::string Describe(int64_t index) const override { return fmt::format("number {}", index); }
  void WillNeed(int64_t) const override { open_hints_.fetch_add(1); }
  void WontNeed(int64_t) const override { open_hints_.fetch_sub(1); }

  std::function<Status(int64_t index)> on_read;  // set before threads read
  int64_t reads() const { return reads_.load(); }
  // What was announced and neither read nor taken back.
  int64_t open_hints() const { return open_hints_.load() - reads_.load(); }

 private:
  const int64_t size_;
  const TensorSpec input_{.dtype = DType::kF32, .shape = {16}}, target_{.dtype = DType::kI64, .shape = {}};
  mutable std::atomic<int64_t> reads_{0}, open_hints_{0};
};

}  // namespace tidepool::data
