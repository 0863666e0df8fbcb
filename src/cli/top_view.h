// What `sluice top` shows of a /v1/loads document, of an engine or of a gateway.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace sluice::cli {

// A line about all ranks and one for each; lines longer than `width` are cut (0: never). kProtocol where the document
// is none.
Result<std::string> top_view(std::string_view url, std::string_view loads_document, size_t width);

}  // namespace sluice::cli
