"""The same equations in array code of other libraries, to compare with; one module for each library."""
