// What a gateway leaves to the one that takes over from it, besides its sockets: the workers, with what the operator
// said of them. What it believed of their caches dies with it.
#pragma once

#include <string>

#include "gateway/context.h"

namespace sluice::gateway {

// The workers as JSON, an engine once for all its ranks; those that drain are left out. It holds their keys.
std::string fleet_document(const Context& context);

// Adds the workers of the document and waits until those that were healthy have passed a check, at most 30 s. After
// that one of them is enough. kUnavailable if none has; kProtocol if this is no such document. Not on a loop's thread.
Result<void> take_over_fleet(Context& context, const std::string& document);

}  // namespace sluice::gateway
