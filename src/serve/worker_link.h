// One life of the device worker process as the front end sees it: started, spoken to, gone.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/process.h"
#include "base/unix_socket.h"
#include "serve/protocol.h"

namespace tidepool::serve {

struct WorkerLinkOptions {
  std::string binary;
  int threads = 0;   // 0: all cores
  UniqueFd pool;     // a connection to the page broker
  int slab_fd = -1;  // not owned
  int64_t slab_bytes = 0;
  // Called on the link's own thread: each message, then once the end.
  std::function<void(Message)> on_message;
  std::function<void(Status)> on_end;
};

// Owned by the thread that starts it: the worker dies with that thread.
class WorkerLink {
 public:
  static StatusOr<std::unique_ptr<WorkerLink>> Start(WorkerLinkOptions options);
  ~WorkerLink();  // ends the worker, waits for the link's thread

  // UNAVAILABLE if the worker is gone, DEADLINE_EXCEEDED if it does not read.
  Status Send(const Message& message);
  int pid() const { return child_.pid(); }
  // Waits for the process to end, killing it after `grace`. No memory that it shared is written after this.
  ExitStatus End(absl::Duration grace);

 private:
  WorkerLink(ChildProcess child, PacketSocket socket) : child_(std::move(child)), socket_(std::move(socket)) {}
  void ReceiveLoop();

  ChildProcess child_;
  PacketSocket socket_;
  std::function<void(Message)> on_message_;
  std::function<void(Status)> on_end_;
  std::thread receiver_;
};

}  // namespace tidepool::serve
