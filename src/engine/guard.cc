#include "engine/guard.h"

#include <new>
#include <string>
#include <string_view>

namespace tidepool::engine {
namespace {

std::string FirstLine(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

Status StatusOfTorchError(const c10::Error& error) {
  const std::string text = FirstLine(error.what_without_backtrace());
  if (text.find("INTERNAL ASSERT") != std::string::npos) return Internal("libtorch: {}", text);
  return InvalidArgument("libtorch: {}", text);
}

}  // namespace

Status StatusOfCurrentException() {
  try {
    throw;
  } catch (const AbortError& error) {
    return Aborted("{}", error.what());
  } catch (const PoolLimitError& error) {
    return error.status();
  } catch (const c10::OutOfMemoryError& error) {
    return ResourceExhausted("libtorch: {}", FirstLine(error.what_without_backtrace()));
  } catch (const c10::NotImplementedError& error) {
    return Internal("libtorch: {}", FirstLine(error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    return StatusOfTorchError(error);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("the process's heap has no room");
  } catch (const std::exception& error) {
    return Internal("{}", FirstLine(error.what()));
  } catch (...) {
    return Internal("an exception of unknown type");
  }
}

}  // namespace tidepool::engine
