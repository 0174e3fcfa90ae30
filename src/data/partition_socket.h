// TCP with deadlines: whole messages or an error, never a wait without end.
#pragma once

#include <absl/time/time.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "base/fd.h"
#include "base/status.h"

namespace tidepool::data {

// INVALID_ARGUMENT unless it is "127.0.0.1:7000" or "[::1]:7000": names are not looked up, because that has no deadline.
Status CheckAddress(const std::string& address);
// Whether only this machine reaches it; false for what is no address.
bool IsLoopback(const std::string& address);

// One connection. Thread-compatible, but for Shutdown, which any thread may call.
class TcpSocket {
 public:
  TcpSocket() = default;
  explicit TcpSocket(UniqueFd fd) : fd_(std::move(fd)) {}
  // `address` is as CheckAddress says. UNAVAILABLE if nobody listens there, DEADLINE_EXCEEDED if nobody answers.
  static StatusOr<TcpSocket> Connect(const std::string& address, absl::Time deadline);

  // All bytes of both parts. UNAVAILABLE when the peer is gone, DEADLINE_EXCEEDED when it takes too few.
  Status Send(std::span<const std::byte> first, std::span<const std::byte> second, absl::Time deadline);
  // Exactly as many bytes. UNAVAILABLE "the peer closed the connection" at its end, DEADLINE_EXCEEDED if they did not come in
  // time. `got` tells how many came, in every case.
  Status Receive(std::span<std::byte> bytes, absl::Time deadline, size_t* got = nullptr);
  // Every call in another thread returns.
  void Shutdown() const;
  bool valid() const { return fd_.valid(); }
  void Close() { fd_.reset(); }

 private:
  UniqueFd fd_;
};

class TcpListener {
 public:
  // `address` as above; port 0 takes a free one. ALREADY_EXISTS if the port is taken.
  static StatusOr<TcpListener> Listen(const std::string& address);
  // Non-blocking: UNAVAILABLE if nobody waits. Poll fd() first.
  StatusOr<TcpSocket> Accept();
  int fd() const { return fd_.get(); }
  const std::string& address() const { return address_; }  // with the real port

 private:
  UniqueFd fd_;
  std::string address_;
};

}  // namespace tidepool::data
