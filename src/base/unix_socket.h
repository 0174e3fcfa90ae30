// Unix sequenced-packet sockets: whole messages, in order, with file descriptors attached. End of the peer is seen at once.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool {

// The largest message either side sends; a longer one is refused by Send, and dropped by Receive with
// INVALID_ARGUMENT; the connection goes on.
inline constexpr int64_t kMaxPacketBytes = int64_t{64} << 10;

struct Packet {
  std::string data;
  std::vector<UniqueFd> fds;
};

// The process at the other end as the kernel saw it when the connection was made.
struct PeerCredentials {
  int pid = 0;
  unsigned uid = 0;
  unsigned gid = 0;
};

// One end of a connection. Send and Receive may be called from two different threads at once; two Sends may not.
class PacketSocket {
 public:
  PacketSocket() = default;
  explicit PacketSocket(UniqueFd fd) : fd_(std::move(fd)) {}
  // UNAVAILABLE if nobody listens there, DEADLINE_EXCEEDED if the listener accepts nobody for 5 s.
  static StatusOr<PacketSocket> Connect(const std::string& path);
  // Two connected ends, both close-on-exec.
  static StatusOr<std::pair<PacketSocket, PacketSocket>> Pair();

  // UNAVAILABLE when the peer is gone, DEADLINE_EXCEEDED when its buffer stayed full.
  Status Send(std::string_view data, std::span<const int> fds, absl::Time deadline);
  Status Send(std::string_view data, absl::Time deadline) { return Send(data, {}, deadline); }
  // UNAVAILABLE "peer closed" at the end of the connection, DEADLINE_EXCEEDED if nothing came.
  StatusOr<Packet> Receive(absl::Time deadline);
  // Ends both directions: a Receive in another thread returns UNAVAILABLE.
  void Shutdown();

  StatusOr<PeerCredentials> Peer() const;
  int fd() const { return fd_.get(); }
  bool valid() const { return fd_.valid(); }
  UniqueFd TakeFd() { return std::move(fd_); }

 private:
  UniqueFd fd_;
};

// A listening socket at a path in the file system, mode 0600, removed when destroyed. A stale path of a dead listener is
// replaced; a live one is ALREADY_EXISTS.
class PacketListener {
 public:
  static StatusOr<PacketListener> Listen(const std::string& path);
  PacketListener(PacketListener&&) = default;
  PacketListener& operator=(PacketListener&& other) noexcept;
  ~PacketListener();
  // Non-blocking: UNAVAILABLE if nobody waits. Poll fd() for readability first.
  StatusOr<PacketSocket> Accept();
  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

 private:
  PacketListener(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
};

}  // namespace tidepool
