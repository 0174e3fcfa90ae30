// The end of a partitioned cache that answers other nodes: which record they want goes in, its bytes or "I do not have it" come
// out.
//
// One thread per connection, at most max_connections of them; a connection more is refused with RESOURCE_EXHAUSTED. A peer that
// sends what does not parse, or that is too slow, loses its connection and nothing else.
//
// With a key only peers that have it too are answered (partition_auth.h). Without one whoever reaches the port can ask for
// records, so it listens on loopback addresses only, unless `open` says that the network's machines may read the data.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <variant>

#include "base/fd.h"
#include "base/status.h"
#include "data/partition_protocol.h"
#include "data/partition_socket.h"
#include "data/record_source.h"

namespace tidepool::data {

struct PartitionServerOptions {
  PartitionIdentity identity;
  uint32_t node = 0;
  std::string listen = "127.0.0.1:0";
  std::string key;    // empty: none
  bool open = false;  // without a key also on other addresses than loopback
  int max_connections = 64;
  int64_t max_record_bytes = int64_t{256} << 20;
  absl::Duration hello_limit = absl::Seconds(5);  // from the connection to its Hello
  absl::Duration frame_limit = absl::Seconds(5);  // from the first byte of a frame to its last
  absl::Duration send_limit = absl::Seconds(30);  // for an answer
  absl::Duration idle_limit = absl::Minutes(10);  // between frames

  Status Validate() const;
};

struct PartitionServerStats {
  int64_t connections = 0;                      // now
  int64_t accepted = 0, refused = 0;            // connections, ever; refused: too many, a Hello that does not match, no key
  int64_t records = 0, absent = 0, failed = 0;  // answers to Get
  int64_t record_bytes = 0;
  int64_t broken = 0;  // connections that ended because of what the peer sent or did not send
};

// Thread-safe.
class PartitionServer {
 public:
  // What a Get is answered with. An error becomes an Error frame.
  using Answer = std::variant<RecordView, AbsentFrame, Status>;
  // Called on several threads at once.
  using Handler = std::function<Answer(int64_t record)>;

  static StatusOr<std::unique_ptr<PartitionServer>> Start(PartitionServerOptions options, Handler handler);
  // Ends all connections; waits for handlers that are running.
  ~PartitionServer();

  const std::string& address() const { return listener_.address(); }
  uint64_t incarnation() const { return incarnation_; }
  PartitionServerStats stats() const;

 private:
  struct Connection {
    TcpSocket socket;
    std::thread thread;
    bool ended = false;  // guarded by mu_
  };

  PartitionServer(PartitionServerOptions options, Handler handler, TcpListener listener, UniqueFd wake);
  void AcceptLoop();
  void Add(TcpSocket socket);
  void JoinEnded();
  void Serve(Connection* connection);
  Status Greet(TcpSocket* socket);
  // Whether the client has the key too. UNAUTHENTICATED if not.
  Status Authenticate(TcpSocket* socket, const HelloFrame& hello, uint64_t call);
  // Answers one Get.
  Status AnswerNext(TcpSocket* socket);
  Status SendFrame(TcpSocket* socket, uint64_t call, const PartitionMessage& message, std::span<const std::byte> record = {});
  void Wake() const;

  const PartitionServerOptions options_;
  const Handler handler_;
  TcpListener listener_;
  const UniqueFd wake_;  // an eventfd
  const uint64_t incarnation_;
  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::list<Connection> connections_ ABSL_GUARDED_BY(mu_);
  PartitionServerStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread acceptor_;
};

// Reads one frame but for the bytes of a Record. The first byte is awaited until `first_by`, the rest for `frame_limit` from
// then, and nothing beyond `whole_by`.
struct ReceivedFrame {
  uint64_t call = 0;
  PartitionMessage message;
  int64_t record_bytes = 0;  // still to come, of a Record
};
StatusOr<ReceivedFrame> ReceiveFrame(TcpSocket* socket, absl::Time first_by, absl::Duration frame_limit, int64_t max_record_bytes,
                                     absl::Time whole_by = absl::InfiniteFuture());

}  // namespace tidepool::data
