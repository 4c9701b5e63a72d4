// What a launcher returns: success, or one sentence for the user.
#pragma once

#include <string>
#include <utility>

namespace flagattn {

struct [[nodiscard]] Status {
  std::string message;  // empty means success

  static Status success() { return {}; }
  static Status error(std::string text) { return Status{std::move(text)}; }

  bool ok() const { return message.empty(); }
};

}  // namespace flagattn
