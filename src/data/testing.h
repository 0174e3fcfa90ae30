// For tests: folders that go away, pictures, and writers of the formats that we only read.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "data/crc32c.h"
#include "data/jpeg.h"

namespace tidepool::data {

class TempFolder {
 public:
  TempFolder()
      : path_(std::filesystem::path(::testing::TempDir()) /
              fmt::format("tidepool-data-{}-{}", ::getpid(), ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::create_directories(path_);
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::string path(const std::string& name = "") const { return name.empty() ? path_.string() : (path_ / name).string(); }
  std::string Write(const std::string& name, std::string_view content) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream file(path(name), std::ios::binary | std::ios::trunc);
    file << content;
    file.close();
    EXPECT_TRUE(file.good()) << path(name);
    return path(name);
  }

 private:
  const std::filesystem::path path_;
};

inline std::span<const std::byte> AsBytes(std::string_view text) { return std::as_bytes(std::span(text)); }
inline std::string AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A picture whose content depends on `seed`.
inline std::string SmallJpeg(int seed, int width = 32, int height = 24) {
  std::vector<uint8_t> rgb(size_t{3} * width * height);
  for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>((i * (3 + seed)) / 7 + 40 * seed);
  return EncodeJpeg(rgb, width, height, 85).value();
}

// Archives in the POSIX ustar format.
class TarBuilder {
 public:
  TarBuilder& Add(const std::string& name, std::string_view content, char type = '0') {
    std::string header(512, '\0');
    header.replace(0, std::min<size_t>(name.size(), 100), name, 0, 100);
    header.replace(100, 8, "0000644", 8);
    header.replace(108, 8, "0000000", 8);
    header.replace(116, 8, "0000000", 8);
    header.replace(124, 12, fmt::format("{:011o}", content.size()).c_str(), 12);
    header.replace(136, 12, "00000000000", 12);
    header[156] = type;
    header.replace(257, 8,
                   std::string_view("ustar\0"
                                    "00",
                                    8));
    Seal(&header);
    bytes_ += header;
    bytes_ += content;
    bytes_.resize((bytes_.size() + 511) / 512 * 512);
    return *this;
  }
  static void Seal(std::string* header) {
    header->replace(148, 8, "        ");
    unsigned sum = 0;
    for (const char c : *header) sum += static_cast<unsigned char>(c);
    header->replace(148, 8, fmt::format("{:06o}", sum) + std::string("\0 ", 2));
  }
  size_t size() const { return bytes_.size(); }
  std::string Finish() const { return bytes_ + std::string(1024, '\0'); }

 private:
  std::string bytes_;
};

inline std::string Number(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i)));
  return text;
}

inline std::string TfFrame(const std::string& data) {
  const std::string length = Number(data.size(), 8);
  return length + Number(MaskCrc(Crc32c(AsBytes(length))), 4) + data + Number(MaskCrc(Crc32c(AsBytes(data))), 4);
}

inline std::string Varint(uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7) text.push_back(static_cast<char>(value | 0x80));
  text.push_back(static_cast<char>(value));
  return text;
}
// A length-delimited field.
inline std::string Field(int number, const std::string& content) {
  return Varint(static_cast<uint64_t>(number) << 3 | 2) + Varint(content.size()) + content;
}
inline std::string BytesFeature(const std::string& name, const std::string& value) {
  return Field(1, Field(1, name) + Field(2, Field(1, Field(1, value))));
}
inline std::string IntFeature(const std::string& name, int64_t value) {
  return Field(1, Field(1, name) + Field(2, Field(3, Field(1, Varint(static_cast<uint64_t>(value))))));
}
inline std::string TfExample(const std::string& jpeg, int64_t label) {
  return Field(1, IntFeature("image/height", 24) + BytesFeature("image/encoded", jpeg) + IntFeature("image/class/label", label) +
                      BytesFeature("image/filename", "x.jpg"));
}

}  // namespace tidepool::data
