// The members of a tar archive: POSIX ustar, with pax headers (path, size) and GNU long names and sizes; the old format without a
// magic is read too. Only headers are looked at.
//
// Errors: DATA_LOSS for an archive that is cut short or whose header has a wrong checksum; INVALID_ARGUMENT for what is no
// archive. Both carry the offset of the header.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "base/status.h"

namespace tidepool::data {

struct TarMember {
  std::string name;
  int64_t header_offset = 0;  // where its first header block begins, extended headers included
  int64_t data_offset = 0;
  int64_t size_bytes = 0;
  bool regular = false;  // a file; not a folder, link or device
};

// Thread-compatible.
class TarReader {
 public:
  // Fills `buffer` from `offset`; returns how much there is, less than asked for only at the end of the file.
  using ReadAt = std::function<StatusOr<size_t>(int64_t offset, std::span<std::byte> buffer)>;
  TarReader(ReadAt read, int64_t file_bytes) : read_(std::move(read)), file_bytes_(file_bytes) {}

  // The next member; nothing after the last. An archive has to end with a block of zeros: without it members may be missing.
  StatusOr<std::optional<TarMember>> Next();

 private:
  struct Header;
  StatusOr<std::string> ReadText(int64_t offset, int64_t size) const;
  Status ReadExtension(const Header& header, TarMember* member, std::optional<int64_t>* size);

  const ReadAt read_;
  const int64_t file_bytes_;
  int64_t offset_ = 0;
};

}  // namespace tidepool::data
