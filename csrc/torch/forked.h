// Whether this process is a fork of one that had this library loaded.
#pragma once

namespace flagattn {

// A fork copies the calling thread alone. OpenMP's pool, if there was one, then waits for ever for threads that are
// gone, and nobody can ask it whether there was one.
bool in_forked_child();

}  // namespace flagattn
