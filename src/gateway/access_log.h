// One line for each request that was answered, or whose client left: --access-log. No text of prompts or answers, no
// credentials, of the target the path alone.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "gateway/options.h"
#include "net/http.h"
#include "obs/journal.h"
#include "obs/line_writer.h"

namespace sluice::gateway {

class AccessLog {
 public:
  enum class Form { kText, kJson };

  // Null with --access-log off.
  static Result<std::unique_ptr<AccessLog>> open(const GatewayOptions& options);

  // Any thread; waits for nothing.
  void add(const obs::RequestRecord& record, const net::RequestHead& head, std::string_view client);
  uint64_t dropped() const { return writer_->dropped(); }

  static std::string line_of(Form form, const obs::RequestRecord& record, const net::RequestHead& head,
                             std::string_view client);

 private:
  AccessLog(Form form, std::unique_ptr<obs::LineWriter> writer) : form_(form), writer_(std::move(writer)) {}

  // Constant after construction.
  const Form form_;
  const std::unique_ptr<obs::LineWriter> writer_;
};

}  // namespace sluice::gateway
