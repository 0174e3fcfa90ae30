// Addresses that servers listen on.
#pragma once

#include <string>

#include "base/status.h"

namespace tidepool::api {

// "localhost" becomes 127.0.0.1. INVALID_ARGUMENT for what is not an IP address.
StatusOr<std::string> ResolveListenAddress(const std::string& address);
// Whether only this machine can reach it.
bool IsLoopback(const std::string& ip);
// "127.0.0.1:8000", "[::1]:8000".
std::string HostAndPort(const std::string& ip, int port);
// The address with which a client on this machine reaches a server that listens on `ip`: a loopback one for "any".
std::string ClientAddress(const std::string& ip);
// ALREADY_EXISTS if somebody listens on it. `what` names the server in the error. Port 0 is always free.
Status CheckPortFree(const std::string& what, const std::string& ip, int port);

}  // namespace tidepool::api
