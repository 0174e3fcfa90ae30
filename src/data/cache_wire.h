// Little-endian fields of the messages of partition_protocol.h and shared_prep_protocol.h. Thread-compatible.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

namespace tidepool::data {

class FieldWriter {
 public:
  template <std::integral T>
  FieldWriter& Add(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) text_.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
    return *this;
  }
  // A u16 length and the bytes; longer text is cut.
  FieldWriter& AddText(std::string_view text) {
    text = text.substr(0, UINT16_MAX);
    Add(static_cast<uint16_t>(text.size()));
    text_ += text;
    return *this;
  }
  template <size_t N>
  FieldWriter& AddBytes(const std::array<uint8_t, N>& bytes) {
    text_.append(reinterpret_cast<const char*>(bytes.data()), N);
    return *this;
  }
  std::string Finish() { return std::move(text_); }

 private:
  std::string text_;
};

// Reading past the end gives zeros and sets failed(); check Ended() once at the end.
class FieldReader {
 public:
  explicit FieldReader(std::string_view text) : text_(text) {}

  template <std::integral T>
  T Get() {
    if (text_.size() < sizeof(T)) {
      failed_ = true;
      text_ = {};
      return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<uint64_t>(static_cast<unsigned char>(text_[i])) << (8 * i);
    text_.remove_prefix(sizeof(T));
    return static_cast<T>(value);
  }
  std::string GetText() {
    const auto size = Get<uint16_t>();
    if (text_.size() < size) {
      failed_ = true;
      text_ = {};
      return {};
    }
    std::string text(text_.substr(0, size));
    text_.remove_prefix(size);
    return text;
  }
  template <size_t N>
  void GetBytes(std::array<uint8_t, N>* bytes) {
    for (uint8_t& byte : *bytes) byte = Get<uint8_t>();
  }
  std::string_view rest() const { return text_; }
  bool failed() const { return failed_; }
  // Everything was there, and nothing is left.
  bool Ended() const { return !failed_ && text_.empty(); }

 private:
  std::string_view text_;
  bool failed_ = false;
};

}  // namespace tidepool::data
