#include "data/tar.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "base/units.h"

namespace tidepool::data {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kLongestExtension = kMiB;  // of a pax header or a long name
constexpr int kMostExtensions = 16;          // before one member

// A number field: octal digits, or (GNU) big-endian binary with the top bit of the first byte set.
std::optional<int64_t> ParseNumber(std::string_view field) {
  const auto first = static_cast<unsigned char>(field[0]);
  if ((first & 0x80) != 0) {
    if ((first & 0x40) != 0) return std::nullopt;  // negative
    uint64_t value = first & 0x3f;
    for (size_t i = 1; i < field.size(); ++i) {
      if (value >> 55 != 0) return std::nullopt;
      value = value << 8 | static_cast<unsigned char>(field[i]);
    }
    return static_cast<int64_t>(value);
  }
  size_t begin = 0;
  while (begin < field.size() && field[begin] == ' ') ++begin;
  int64_t value = 0;
  size_t i = begin;
  for (; i < field.size() && field[i] >= '0' && field[i] <= '7'; ++i) {
    if (value >> 59 != 0) return std::nullopt;
    value = value * 8 + (field[i] - '0');
  }
  if (i == begin || (i < field.size() && field[i] != ' ' && field[i] != '\0')) return std::nullopt;
  return value;
}

std::string_view UpToZero(std::string_view field) { return field.substr(0, std::min(field.find('\0'), field.size())); }

}  // namespace

struct TarReader::Header {
  std::array<char, kBlock> block;

  std::string_view field(size_t offset, size_t size) const { return {block.data() + offset, size}; }
  bool zero() const {
    return std::all_of(block.begin(), block.end(), [](char c) { return c == 0; });
  }
  char type() const { return block[156]; }
  std::optional<int64_t> size() const { return ParseNumber(field(124, 12)); }
  // The sum of all bytes with the checksum field taken as spaces; some old writers summed signed bytes.
  bool checksum_matches() const {
    const std::optional<int64_t> stored = ParseNumber(field(148, 8));
    int64_t plain = 0, with_sign = 0;
    for (size_t i = 0; i < block.size(); ++i) {
      const char c = i >= 148 && i < 156 ? ' ' : block[i];
      plain += static_cast<unsigned char>(c);
      with_sign += static_cast<signed char>(c);
    }
    return stored.has_value() && (*stored == plain || *stored == with_sign);
  }
  std::string name() const {
    const std::string base(UpToZero(field(0, 100)));
    // The prefix belongs to POSIX archives only; GNU keeps other things there.
    if (field(257, 6) != std::string_view("ustar\0", 6)) return base;
    const std::string prefix(UpToZero(field(345, 155)));
    return prefix.empty() ? base : prefix + "/" + base;
  }
};

StatusOr<std::string> TarReader::ReadText(int64_t offset, int64_t size) const {
  std::string text(static_cast<size_t>(size), '\0');
  TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, read_(offset, std::as_writable_bytes(std::span(text))));
  if (got < text.size()) return DataLoss("the archive is cut short in the extended header at byte {}", offset);
  return text;
}

// GNU 'L' (a long name), 'K' (a long link name) or pax 'x' before a member. pax 'g' speaks of all members that follow; its path
// and size would make no sense, so it is skipped.
Status TarReader::ReadExtension(const Header& header, TarMember* member, std::optional<int64_t>* size) {
  const int64_t length = *header.size();
  if (length > kLongestExtension) {
    return InvalidArgument("the extended header at byte {} has {} bytes; allowed: up to {}", offset_, length, kLongestExtension);
  }
  TIDEPOOL_ASSIGN_OR_RETURN(const std::string text, ReadText(offset_ + kBlock, length));
  if (header.type() == 'L') member->name = std::string(UpToZero(text));
  if (header.type() != 'x') return {};
  for (size_t at = 0; at < text.size();) {
    // "LENGTH KEY=VALUE\n", where LENGTH counts the whole line.
    size_t line = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), line);
    const size_t digits = static_cast<size_t>(end - text.data()) - at;
    if (error != std::errc() || line < digits + 3 || line > text.size() - at || *end != ' ' || text[at + line - 1] != '\n') {
      return InvalidArgument("the pax header at byte {} has a line that does not parse", offset_);
    }
    const std::string_view pair = std::string_view(text).substr(at + digits + 1, line - digits - 2);
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos) return InvalidArgument("the pax header at byte {} has a line without '='", offset_);
    const std::string_view key = pair.substr(0, equals), value = pair.substr(equals + 1);
    if (key == "path") member->name = std::string(value);
    if (key == "size") {
      int64_t parsed = -1;
      const auto [last, fault] = std::from_chars(value.data(), value.data() + value.size(), parsed);
      if (fault != std::errc() || last != value.data() + value.size() || parsed < 0) {
        return InvalidArgument("the pax header at byte {} says size={}", offset_, value);
      }
      *size = parsed;
    }
    at += line;
  }
  return {};
}

StatusOr<std::optional<TarMember>> TarReader::Next() {
  TarMember member{.header_offset = offset_};
  std::optional<int64_t> pax_size;
  for (int extensions = 0; extensions <= kMostExtensions; ++extensions) {
    Header header;
    TIDEPOOL_ASSIGN_OR_RETURN(const size_t got, read_(offset_, std::as_writable_bytes(std::span(header.block))));
    if (got < header.block.size()) {
      return DataLoss("the archive ends at byte {} without the block of zeros that closes it: members may be missing",
                      offset_ + static_cast<int64_t>(got));
    }
    if (header.zero()) return std::optional<TarMember>();
    if (!header.checksum_matches()) {
      return offset_ == 0 ? InvalidArgument("not a tar archive: its first block has no valid checksum")
                          : DataLoss("the tar header at byte {} has a wrong checksum", offset_);
    }
    const std::optional<int64_t> size = header.size();
    if (!size.has_value()) return DataLoss("the tar header at byte {} has no valid size", offset_);
    const char type = header.type();
    const bool extension = type == 'L' || type == 'K' || type == 'x' || type == 'g';
    const bool no_data = type >= '2' && type <= '6';  // links, devices, folders: their size is not that of data
    const int64_t bytes = extension ? *size : no_data ? 0 : pax_size.value_or(*size);
    if (bytes > file_bytes_ - offset_ - kBlock) {
      return DataLoss("the archive has {} bytes, but its member at byte {} goes on to byte {}", file_bytes_, offset_,
                      bytes > INT64_MAX - offset_ - kBlock ? INT64_MAX : offset_ + kBlock + bytes);
    }
    if (extension) {
      TIDEPOOL_RETURN_IF_ERROR(ReadExtension(header, &member, &pax_size));
      offset_ += kBlock + RoundUp(bytes, kBlock);
      continue;
    }
    if (member.name.empty()) member.name = header.name();
    member.regular = type == '0' || type == '\0' || type == '7';
    member.data_offset = offset_ + kBlock;
    member.size_bytes = bytes;
    offset_ += kBlock + RoundUp(bytes, kBlock);
    return std::optional<TarMember>(std::move(member));
  }
  return InvalidArgument("the member at byte {} has more than {} extended headers", member.header_offset, kMostExtensions);
}

}  // namespace tidepool::data
