// Status and StatusOr are Abseil's. This header adds formatted construction and the two macros that pass errors on.
//
// A message names the thing, the value seen, the value allowed and, where there is one, what to do next.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include <string>
#include <utility>

namespace tidepool {

using absl::Status;
using absl::StatusCode;
using absl::StatusOr;

// Abseil's string_view is its own type on Debian 12; everything of ours speaks std::string.
inline std::string MessageOf(const Status& status) { return std::string(status.message().data(), status.message().size()); }

// The canonical name of a code, for example "RESOURCE_EXHAUSTED".
std::string CodeName(StatusCode code);
// "RESOURCE_EXHAUSTED: text", or "OK".
std::string ToString(const Status& status);
// The HTTP status that carries `code` to a REST client. (gRPC's codes have the same numbers as Abseil's.)
int HttpStatusOf(StatusCode code);

template <typename... Args>
Status MakeError(StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}

#define TIDEPOOL_DEFINE_ERROR(Name, kCode)                                              \
  template <typename... Args>                                                           \
  Status Name(fmt::format_string<Args...> format, Args&&... args) {                     \
    return Status(StatusCode::kCode, fmt::format(format, std::forward<Args>(args)...)); \
  }
TIDEPOOL_DEFINE_ERROR(InvalidArgument, kInvalidArgument)
TIDEPOOL_DEFINE_ERROR(NotFound, kNotFound)
TIDEPOOL_DEFINE_ERROR(AlreadyExists, kAlreadyExists)
TIDEPOOL_DEFINE_ERROR(PermissionDenied, kPermissionDenied)
TIDEPOOL_DEFINE_ERROR(ResourceExhausted, kResourceExhausted)
TIDEPOOL_DEFINE_ERROR(FailedPrecondition, kFailedPrecondition)
TIDEPOOL_DEFINE_ERROR(Aborted, kAborted)
TIDEPOOL_DEFINE_ERROR(Cancelled, kCancelled)
TIDEPOOL_DEFINE_ERROR(DeadlineExceeded, kDeadlineExceeded)
TIDEPOOL_DEFINE_ERROR(OutOfRange, kOutOfRange)
TIDEPOOL_DEFINE_ERROR(Unimplemented, kUnimplemented)
TIDEPOOL_DEFINE_ERROR(Unavailable, kUnavailable)
TIDEPOOL_DEFINE_ERROR(Internal, kInternal)
TIDEPOOL_DEFINE_ERROR(DataLoss, kDataLoss)
#undef TIDEPOOL_DEFINE_ERROR

// The same error with "context: " before its text. OK stays OK.
Status Annotate(const Status& status, const std::string& context);
// The error for a failed system call: `what` names the call and the thing, errno gives the reason and picks the code.
Status ErrnoError(int error_number, const std::string& what);

}  // namespace tidepool

#define TIDEPOOL_RETURN_IF_ERROR(expr)                   \
  do {                                                   \
    ::tidepool::Status tidepool_status_ = (expr);        \
    if (!tidepool_status_.ok()) return tidepool_status_; \
  } while (false)

#define TIDEPOOL_CONCAT_INNER_(a, b) a##b
#define TIDEPOOL_CONCAT_(a, b) TIDEPOOL_CONCAT_INNER_(a, b)
// TIDEPOOL_ASSIGN_OR_RETURN(auto x, F()): returns F's error, or gives x its value.
#define TIDEPOOL_ASSIGN_OR_RETURN(lhs, expr) \
  TIDEPOOL_ASSIGN_OR_RETURN_IMPL_(TIDEPOOL_CONCAT_(tidepool_statusor_, __LINE__), lhs, expr)
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration and a name do not stand in parentheses.
#define TIDEPOOL_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                    \
  if (!tmp.ok()) return std::move(tmp).status();        \
  lhs = std::move(tmp).value()
// NOLINTEND(bugprone-macro-parentheses)

// Aborts with the text. For our own bugs only: never for what a user, a file or a peer can cause.
#define TIDEPOOL_CHECK(condition, ...)                                                                             \
  do {                                                                                                             \
    if (!(condition)) ::tidepool::internal::CheckFailed(__FILE__, __LINE__, #condition, fmt::format(__VA_ARGS__)); \
  } while (false)

namespace tidepool::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace tidepool::internal
