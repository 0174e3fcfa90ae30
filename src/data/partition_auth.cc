#include "data/partition_auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/fd.h"

namespace tidepool::data {
namespace {

AuthBytes Proof(std::string_view label, std::string_view key, std::string_view hello, const AuthBytes& challenge) {
  std::string text(label);
  text += hello;
  text.append(reinterpret_cast<const char*>(challenge.data()), challenge.size());
  AuthBytes proof{};
  unsigned int size = proof.size();
  // It cannot fail with SHA-256 and a key of this length.
  ::HMAC(::EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(text.data()),
         text.size(), proof.data(), &size);
  return proof;
}

}  // namespace

StatusOr<std::string> ReadPeerKey(const std::string& path) {
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0) return ErrnoError(errno, fmt::format("looking at the key '{}'", path));
  if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return PermissionDenied("the key '{}' has mode {:03o}; allowed: none for group and others (chmod 600)", path,
                            facts.st_mode & 0777);
  }
  if (facts.st_size < kLeastPeerKeyBytes || facts.st_size > kMostPeerKeyBytes) {
    return InvalidArgument("the key '{}' has {} bytes; allowed: {} to {}", path, facts.st_size, kLeastPeerKeyBytes,
                           kMostPeerKeyBytes);
  }
  return ReadFile(path, kMostPeerKeyBytes);
}

AuthBytes RandomAuthBytes() {
  AuthBytes bytes{};
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t got = ::getrandom(bytes.data() + filled, bytes.size() - filled, 0);
    if (got > 0) filled += static_cast<size_t>(got);  // up to 256 bytes it only fails when a signal comes
  }
  return bytes;
}

AuthBytes ServerProof(std::string_view key, std::string_view hello, const AuthBytes& challenge) {
  return Proof("tidepool cache server", key, hello, challenge);
}

AuthBytes ClientProof(std::string_view key, std::string_view hello, const AuthBytes& challenge) {
  return Proof("tidepool cache client", key, hello, challenge);
}

bool SameAuthBytes(const AuthBytes& a, const AuthBytes& b) { return ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

}  // namespace tidepool::data
