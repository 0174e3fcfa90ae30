// Non-blocking packets for the broker's event loop, with the sender's identity as the kernel vouches for it.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "base/fd.h"
#include "base/status.h"
#include "base/unix_socket.h"

namespace tidepool::pool {

// Lets ReceivePacket see who sends what is sent from now on. On a listening socket it holds for the connections that are made to
// it.
Status AskForCredentials(int socket);

struct ReceivedPacket {
  std::string_view data;                  // inside the caller's buffer; empty at the end of the connection
  std::optional<PeerCredentials> sender;  // if asked for
};

// Takes one packet into `buffer`; descriptors that came with it are closed. UNAVAILABLE if there is none now, INVALID_ARGUMENT
// for one that does not fit the buffer, other codes for a broken connection.
StatusOr<ReceivedPacket> ReceivePacket(int socket, std::span<char> buffer);

// UNAVAILABLE if the peer's queue is full now, other codes for a broken connection. `fd` is sent along unless it is negative.
Status SendPacket(int socket, std::string_view data, int fd = -1);

}  // namespace tidepool::pool
